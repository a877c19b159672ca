"""The engine's invariants under random interleavings of submit, abort, load, unload and faults."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.engine.engine import Engine
from server.engine.errors import AdapterInUse, EngineClosed, EngineOverloaded, UnknownAdapter
from server.engine.request import Delta, GenerationRequest, SamplingParams
from server.engine.scheduler import SchedulerLimits
from server.engine.stream import AnswerStream
from tests.server.engine.fake import (
    FakeRunner,
    add_fake_adapter,
    fake_engine,
    next_token,
    run_to_idle,
    step,
)

ADAPTERS = ("a", "b", "c")


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


def check_answer(item: Accepted, poisoned: set[str], aborted: set[str]) -> None:
    deltas = item.deltas()
    finals = [d for d in deltas if d.finish_reason is not None]
    assert len(finals) == 1, "exactly one terminal event"
    assert deltas[-1] is finals[0], "nothing follows the terminal event"
    tokens = [t for d in deltas for t in d.token_ids]
    expected = greedy(item.request)
    assert tokens == expected[: len(tokens)], "stream order is generation order"
    reason = finals[0].finish_reason
    if reason == "error":
        assert item.request.request_id in poisoned
    elif reason == "abort":
        assert item.request.request_id in aborted
    else:
        assert tokens == expected
        assert reason == ("stop" if expected[-1] == 0 else "length")


operation = st.one_of(
    st.tuples(
        st.just("submit"),
        st.sampled_from((None, *ADAPTERS)),
        st.lists(st.integers(1, 2), min_size=1, max_size=30),  # few tokens: shared prefixes
        st.integers(1, 20),
    ),
    st.tuples(st.just("abort"), st.integers(0, 30)),
    st.tuples(st.just("poison"), st.integers(0, 30)),
    st.tuples(st.just("transient")),
    st.tuples(st.just("remove"), st.sampled_from(ADAPTERS)),
    st.tuples(st.just("add"), st.sampled_from(ADAPTERS), st.integers(1, 8)),
    st.tuples(st.just("step"), st.integers(1, 6)),
)


class Interleaving:
    """Applies operations and remembers what must hold at the end."""

    def __init__(self, engine: Engine, runner: FakeRunner) -> None:
        self.engine = engine
        self.runner = runner
        self.accepted: list[Accepted] = []
        self.aborted: set[str] = set()
        self.removals: list[asyncio.Task[None]] = []

    async def apply(self, op: Sequence[object]) -> None:
        await getattr(self, f"do_{op[0]}")(*op[1:])

    async def do_submit(self, adapter: str | None, prompt: list[int], max_tokens: int) -> None:
        request = GenerationRequest(
            f"r{len(self.accepted)}",
            tuple(prompt),
            SamplingParams(max_tokens=max_tokens, temperature=0),
            adapter,
        )
        try:
            stream = self.engine.submit(request)
        except UnknownAdapter:
            return
        self.accepted.append(Accepted(request, stream))

    async def do_abort(self, i: int) -> None:
        if i < len(self.accepted):
            self.aborted.add(f"r{i}")
            self.engine.abort(f"r{i}")

    async def do_poison(self, i: int) -> None:
        self.runner.poisoned.add(f"r{i}")

    async def do_transient(self) -> None:
        self.runner.num_transient = 1

    async def do_remove(self, key: str) -> None:
        if key in self.engine.known_adapters():
            self.removals.append(asyncio.ensure_future(self.engine.remove_adapter(key)))
            await asyncio.sleep(0)

    async def do_add(self, key: str, rank: int) -> None:
        if key not in self.engine.known_adapters():
            add_fake_adapter(self.engine, key, rank)

    async def do_step(self, num: int) -> None:
        await step(self.engine, num)


@settings(max_examples=150, deadline=None)
@given(st.lists(operation, max_size=40), st.integers(18, 40))
def test_invariants_hold_under_random_interleavings(
    operations: list[tuple[object, ...]], num_blocks: int
) -> None:
    async def scenario() -> None:
        engine, runner = fake_engine(num_blocks=num_blocks)
        run = Interleaving(engine, runner)
        for key in ADAPTERS:
            add_fake_adapter(engine, key)
        for op in operations:
            await run.apply(op)
        runner.num_transient = 0
        await run_to_idle(engine)
        for item in run.accepted:
            check_answer(item, runner.poisoned, run.aborted)
        results = await asyncio.gather(*run.removals, return_exceptions=True)
        assert all(r is None or isinstance(r, AdapterInUse) for r in results)
        stats = engine.stats()
        assert stats.kv_blocks_free == stats.kv_blocks_total
        assert stats.pinned_adapters == {}

    asyncio.run(scenario())


def request(name: str, *, adapter: str | None = None, num: int = 5) -> GenerationRequest:
    prompt = tuple(name.encode())
    return GenerationRequest(
        name, prompt, SamplingParams(max_tokens=num, temperature=0, ignore_eos=True), adapter
    )


async def test_only_the_culprit_of_a_failing_step_ends_in_error() -> None:
    engine, runner = fake_engine()
    streams = {name: engine.submit(request(name)) for name in ("one", "two", "bad", "four")}
    runner.poisoned.add("bad")
    await run_to_idle(engine)
    reasons = {name: s.take_ready()[-1].finish_reason for name, s in streams.items()}
    assert reasons == {"one": "length", "two": "length", "bad": "error", "four": "length"}
    assert engine.stats().is_healthy


async def test_a_removed_adapter_finishes_its_requests_and_refuses_new_ones() -> None:
    engine, _ = fake_engine()
    add_fake_adapter(engine, "a")
    stream = engine.submit(request("one", adapter="a"))
    await step(engine)
    with pytest.raises(AdapterInUse):
        await engine.remove_adapter("a", wait=False)
    removal = asyncio.ensure_future(engine.remove_adapter("a"))
    await asyncio.sleep(0)
    with pytest.raises(UnknownAdapter):
        engine.submit(request("two", adapter="a"))
    assert not removal.done()
    await run_to_idle(engine)
    await removal
    assert stream.take_ready()[-1].finish_reason == "length"
    assert engine.known_adapters() == set()


async def test_a_client_that_leaves_while_waiting_for_a_removal_harms_nobody() -> None:
    engine, _ = fake_engine()
    add_fake_adapter(engine, "a")
    engine.submit(request("one", adapter="a"))
    await step(engine)
    removal = asyncio.ensure_future(engine.remove_adapter("a"))
    await asyncio.sleep(0)
    removal.cancel()
    await run_to_idle(engine)
    assert engine.known_adapters() == set()


async def test_more_adapters_than_places_are_all_served() -> None:
    engine, _ = fake_engine(max_adapters=2)
    for i in range(7):
        add_fake_adapter(engine, f"k{i}")
    streams = [engine.submit(request(f"r{i}", adapter=f"k{i % 7}")) for i in range(21)]
    await run_to_idle(engine)
    assert all(s.take_ready()[-1].finish_reason == "length" for s in streams)
    assert len(engine.stats().resident_adapters) <= 2


async def test_a_stream_of_resident_requests_does_not_starve_another_adapter() -> None:
    limits = SchedulerLimits(max_num_seqs=6, max_batched_tokens=12, max_suspension_s=0.0)
    engine, _ = fake_engine(max_adapters=1, limits=limits)
    add_fake_adapter(engine, "hot")
    add_fake_adapter(engine, "cold")
    engine.submit(request("h0", adapter="hot", num=8))
    await step(engine)
    cold = engine.submit(request("cold", adapter="cold", num=2))
    for i in range(1, 40):  # somebody always wants the hot adapter
        engine.submit(request(f"h{i}", adapter="hot", num=8))
        await step(engine, 2)
    assert cold.take_ready()[-1].finish_reason == "length"
    await run_to_idle(engine)


async def test_a_full_queue_refuses_and_holds_nothing() -> None:
    engine, _ = fake_engine(max_queue=0)
    add_fake_adapter(engine, "a")
    for i in range(6):
        engine.submit(request(f"r{i}"))
    with pytest.raises(EngineOverloaded):
        engine.submit(request("late", adapter="a"))
    # The refused request does not count as a user of its adapter.
    removal = asyncio.ensure_future(engine.remove_adapter("a", wait=False))
    await asyncio.sleep(0)
    await step(engine)
    await removal


async def test_stopping_ends_every_open_stream_and_refuses_new_ones() -> None:
    engine, _ = fake_engine()
    engine.start()
    stream = engine.submit(request("one", num=40))
    await stream.__anext__()
    await asyncio.to_thread(engine.stop)
    rest = [d async for d in stream]
    assert rest[-1].finish_reason in ("abort", "length")
    with pytest.raises(EngineClosed):
        engine.submit(request("two"))


async def test_closing_a_stream_stops_its_generation() -> None:
    engine, runner = fake_engine()
    stream = engine.submit(request("one", num=40))
    await step(engine, 3)
    await stream.aclose()
    before = runner.num_forward_passes
    await step(engine, 5)
    assert runner.num_forward_passes == before, "no step was spent on it after the abort"
    assert engine.stats().kv_blocks_free == engine.stats().kv_blocks_total


async def test_a_failing_request_takes_no_shared_keys_and_leaves_none_behind() -> None:
    engine, runner = fake_engine()
    prompt = tuple([1, 2] * 6)  # three blocks of four

    def ask(name: str) -> AnswerStream:
        sampling = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
        return engine.submit(GenerationRequest(name, (*prompt, len(name)), sampling))

    good = ask("one")
    await step(engine)
    bad = ask("bad!")  # shares the first three blocks
    await step(engine, 2)
    runner.poisoned.add("bad!")
    await run_to_idle(engine)
    again = ask("again")  # finds the shared blocks whole
    await run_to_idle(engine)
    reasons = [s.take_ready()[-1].finish_reason for s in (good, bad, again)]
    assert reasons == ["length", "error", "length"]
