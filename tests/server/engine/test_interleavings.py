"""The engine's invariants under random interleavings of everything that can happen to it.

Submit for several tenants, abort, load, unload, reload under a new hash, preemption by a small
cache, turns in a small bank, seats taken by a tenant with less than its share, failing requests,
failing steps, and memory running out in steps and in bank writes.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from server.engine import scheduler
from server.engine.engine import Engine
from server.engine.errors import AdapterInUse, UnknownAdapter
from server.engine.request import Delta, GenerationRequest, SamplingParams, Share, TokenLogprob
from server.engine.scheduler import SchedulerLimits
from server.engine.stream import AnswerStream
from tests.server.engine.fake import (
    FakeRunner,
    add_fake_adapter,
    fake_engine,
    next_token,
    prompt_score,
    run_to_idle,
    step,
)

ALIASES = ("a", "b", "c")
TENANTS = (Share("large", 3.0), Share("small"), Share("greedy"), Share("greedy"))
MAX_BATCHED_TOKENS = 12


@dataclass
class Accepted:
    request: GenerationRequest
    stream: AnswerStream

    def deltas(self) -> list[Delta]:
        return self.stream.take_ready()


def greedy(request: GenerationRequest) -> list[int]:
    """What the request must answer, whatever runs beside it."""
    tokens = list(request.prompt_ids)
    for _ in range(request.sampling.max_tokens):
        tokens.append(next_token(request.adapter, tokens))
        if tokens[-1] == 0:
            break
    return tokens[len(request.prompt_ids) :]


def scores(request: GenerationRequest) -> tuple[TokenLogprob | None, ...]:
    """What the request must hear of its prompt."""
    if request.sampling.prompt_logprobs is None:
        return ()
    ends, prompt = range(2, len(request.prompt_ids) + 1), request.prompt_ids
    return (None, *(prompt_score(request.adapter, prompt[:end]) for end in ends))


operation = st.one_of(
    *[  # as often as all others together
        st.tuples(
            st.just("submit"),
            st.sampled_from((None, *ALIASES, *ALIASES)),
            st.lists(st.integers(1, 2), min_size=1, max_size=24),  # few tokens: shared prefixes
            st.integers(1, 20),
            st.sampled_from(TENANTS),
            st.sampled_from((None, None, 0)),
        )
    ]
    * 4,
    *[st.tuples(st.just("step"), st.integers(1, 6))] * 3,
    st.tuples(st.just("abort"), st.integers(0, 30)),
    st.tuples(st.just("poison"), st.integers(0, 30)),
    st.tuples(st.just("hog"), st.integers(0, 30)),
    st.tuples(st.just("memory"), st.integers(1, 12)),
    st.tuples(st.just("failing_write")),
    st.tuples(st.just("transient")),
    st.tuples(st.just("remove"), st.sampled_from(ALIASES)),
    st.tuples(st.just("reload"), st.sampled_from(ALIASES), st.integers(1, 8)),
)

GREEDY_FIRST: list[tuple[object, ...]] = [
    *[("submit", None, [1, 2] * i, 20, Share("greedy"), None) for i in range(1, 6)],
    ("step", 4),
    *[("submit", None, [2, 1] * i, 20, Share("small"), 0) for i in range(1, 4)],
    ("step", 1),
]


class Interleaving:
    """Applies operations and remembers what must hold at the end."""

    def __init__(self, engine: Engine, runner: FakeRunner) -> None:
        self.engine = engine
        self.runner = runner
        self.accepted: list[Accepted] = []
        self.aborted: set[str] = set()
        self.removals: list[asyncio.Task[None]] = []
        self.versions = Counter[str]()

    def key(self, alias: str) -> str:
        return f"{alias}@{self.versions[alias]}"

    async def apply(self, op: Sequence[object]) -> None:
        await getattr(self, f"do_{op[0]}")(*op[1:])

    async def do_submit(
        self,
        alias: str | None,
        prompt: list[int],
        max_tokens: int,
        share: Share,
        prompt_logprobs: int | None,
    ) -> None:
        sampling = SamplingParams(max_tokens, temperature=0, prompt_logprobs=prompt_logprobs)
        name, adapter = f"r{len(self.accepted)}", None if alias is None else self.key(alias)
        request = GenerationRequest(name, tuple(prompt), sampling, adapter, share)
        try:
            stream = self.engine.submit(request)
        except UnknownAdapter:
            assert adapter not in self.engine.known_adapters()
            return
        self.accepted.append(Accepted(request, stream))

    async def do_abort(self, i: int) -> None:
        if i < len(self.accepted):
            self.aborted.add(f"r{i}")
            self.engine.abort(f"r{i}")

    async def do_poison(self, i: int) -> None:
        self.runner.poisoned.add(f"r{i}")

    async def do_hog(self, i: int) -> None:
        self.runner.hogs.add(f"r{i}")

    async def do_memory(self, max_tokens: int) -> None:
        self.runner.max_tokens = max_tokens

    async def do_failing_write(self) -> None:
        self.runner.num_failing_writes = 1

    async def do_transient(self) -> None:
        self.runner.num_transient = 1

    async def do_remove(self, alias: str) -> None:
        if self.key(alias) in self.engine.known_adapters():
            self.removals.append(asyncio.ensure_future(self.engine.remove_adapter(self.key(alias))))
            await asyncio.sleep(0)

    async def do_reload(self, alias: str, rank: int) -> None:
        """A new version is loaded, the alias moves, the old version drains."""
        old = self.key(alias)
        self.versions[alias] += 1
        add_fake_adapter(self.engine, self.key(alias), rank)
        if old in self.engine.known_adapters():
            self.removals.append(asyncio.ensure_future(self.engine.remove_adapter(old)))
            await asyncio.sleep(0)

    async def do_step(self, num: int) -> None:
        await step(self.engine, num)

    def check_answer(self, item: Accepted) -> str:
        """Invariants 1, 3, 4, 5 and 6 of one request; how it ended."""
        deltas = item.deltas()
        finals = [d for d in deltas if d.finish_reason is not None]
        assert len(finals) == 1, "exactly one terminal event"
        assert deltas[-1] is finals[0], "nothing follows the terminal event"
        tokens = [t for d in deltas for t in d.token_ids]
        expected = greedy(item.request)
        if tokens:
            assert deltas[0].prompt_logprobs == scores(item.request), "its prompt's, said once"
            assert not any(d.prompt_logprobs for d in deltas[1:])
        assert tokens == expected[: len(tokens)], "stream order is generation order"
        name, last = item.request.request_id, finals[0]
        if last.finish_reason == "error":
            is_culprit = name in self.runner.poisoned | self.runner.hogs
            assert is_culprit or "no memory for the adapter" in (last.error or ""), last.error
        elif last.finish_reason == "abort":
            assert name in self.aborted
        else:
            assert tokens == expected
            assert last.finish_reason == ("stop" if expected[-1] == 0 else "length")
        return str(last.finish_reason)

    async def check_idle(self) -> None:
        """Invariant 2, and no removal is forgotten."""
        results = await asyncio.gather(*self.removals, return_exceptions=True)
        assert all(r is None or isinstance(r, AdapterInUse) for r in results)
        stats = self.engine.stats()
        assert stats.kv_blocks_free == stats.kv_blocks_total
        assert stats.pinned_adapters == {}
        assert max(self.runner.num_tokens, default=0) <= MAX_BATCHED_TOKENS


def test_invariants_hold_under_random_interleavings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "MAX_SCORED", 5)
    seen = Counter[str]()

    async def scenario(
        operations: list[tuple[object, ...]], num_blocks: int, num_places: int, num_seats: int
    ) -> None:
        limits = SchedulerLimits(num_seats, MAX_BATCHED_TOKENS, max_suspension_s=0.04)
        engine, runner = fake_engine(num_blocks=num_blocks, max_adapters=num_places, limits=limits)
        run = Interleaving(engine, runner)
        for alias in ALIASES:
            add_fake_adapter(engine, run.key(alias))
        for op in operations:
            await run.apply(op)
        runner.num_transient = 0
        await run_to_idle(engine, max_steps=20_000)
        for item in run.accepted:
            seen[run.check_answer(item)] += 1
        await run.check_idle()
        stats = engine.stats()
        seen["preempted"] += stats.num_preemptions
        seen["suspended"] += stats.num_suspensions
        seen["displaced"] += stats.num_displacements
        seen["out of memory"] += runner.num_out_of_memory

    # A busy machine is no fault of the examples.
    @settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(
        st.lists(operation, min_size=20, max_size=80),
        st.integers(13, 40),
        st.integers(1, 2),
        st.integers(2, 6),
    )
    @example(GREEDY_FIRST, 40, 2, 4)
    def check(operations: list[tuple[object, ...]], blocks: int, places: int, seats: int) -> None:
        asyncio.run(scenario(operations, blocks, places, seats))

    check()
    reasons = ("error", "abort", "length", "stop")
    for event in ("preempted", "suspended", "displaced", "out of memory", *reasons):
        assert seen[event] > 0, f"the interleavings never reached {event!r}"
