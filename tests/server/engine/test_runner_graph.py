"""Exported models answer as the torch engine does, however the work is cut, placed or repeated."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest
import torch

from artifacts.adapter import LoraPair, LoraWeights
from artifacts.architecture import linear_shapes
from artifacts.base import Base, open_base
from server.engine import graph_cache
from server.engine.engine import Engine
from server.engine.errors import NonFiniteLogits
from server.engine.graph_cache import GraphCache
from server.engine.graph_plan import Call
from server.engine.load import EngineLimits
from server.engine.load_export import packer
from server.engine.output import OutputText
from server.engine.request import GenerationRequest, Sampled, SamplingParams
from server.engine.runner_graph import GraphAdapter, GraphRunner
from server.engine.scheduler import Chunk, SchedulerLimits
from server.engine.sequence import Sequence
from tests.server.engine import test_interleavings
from tests.server.engine.fake import (
    add_fake_adapter,
    fake_engine,
    next_token,
    run_to_idle,
)
from tests.server.engine.graph import GraphBacked, GraphServed, HashModel, hashed_scores
from tests.server.engine.served import GREEDY, SEEDED, TEXTS, Served, random_adapter
from tests.server.engine.test_interleavings import (
    ALIASES,
    MAX_BATCHED_TOKENS,
    TENANTS,
    Interleaving,
)

KEYS = (None, "a", "b")
SCORED = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True, prompt_logprobs=2)
LONG = SamplingParams(max_tokens=100, temperature=0, ignore_eos=True)


@pytest.fixture(scope="module")
def base() -> Base:
    return open_base(None)


@pytest.fixture(scope="module")
def plain(base: Base) -> Iterator[Served]:
    """The torch engine, which every answer is held against."""
    with Served(base, EngineLimits(kv_cache_tokens=4096)) as served:
        add_adapters(served)
        yield served


def add_adapters(served: Served) -> None:
    """Strong enough for answers of their own."""
    for key in KEYS[1:]:
        weights = random_adapter(served.base, str(key))
        pairs = {m: replace(pair, scaling=6.0) for m, pair in weights.pairs.items()}
        served.engine.add_adapter(str(key), replace(weights, pairs=pairs))


def nan_adapter(base: Base, linear: str) -> LoraWeights:
    module = f"model.layers.0.{linear}"
    n_out, n_in = linear_shapes(base.config)[module]
    pair = LoraPair(torch.full((1, n_in), torch.nan), torch.ones((n_out, 1)), 1.0)
    return LoraWeights({module: pair}, 1, 1, (), "nan", 0, {})


def sequence(served: GraphServed, text: str) -> Sequence:
    """One that the runner is given by hand; it seems to hold a block."""
    request = GenerationRequest(text, tuple(served.ids(text)), GREEDY)
    seq = Sequence(request, OutputText(lambda ids: "", ()), 0.0)
    seq.block_table.append(0)
    return seq


@pytest.fixture(autouse=True)
def small_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that it has to grow and to shrink in every test."""
    monkeypatch.setattr(graph_cache, "FIRST_ROWS", 1)
    monkeypatch.setattr(graph_cache, "FIRST_PLACES", 8)
    monkeypatch.setattr(graph_cache, "SHRINK_AFTER", 3)


@dataclass(frozen=True)
class Cut:
    """A way to do the same work, and how it shows that it was really done so."""

    limits: EngineLimits
    happened: Callable[[GraphServed], bool]


CUTS = {
    "batched": Cut(
        EngineLimits(kv_cache_tokens=4096),
        lambda served: (6, 1) in served.model.lengths,
    ),
    "chunked": Cut(
        EngineLimits(kv_cache_tokens=4096, max_batched_tokens=7),
        lambda served: served.stats.num_steps > 6 * 44 // 7 + 24,
    ),
    "alone": Cut(
        EngineLimits(kv_cache_tokens=4096, max_num_seqs=1),
        lambda served: all(rows == 1 for rows, _ in served.model.lengths),
    ),
    "preempted": Cut(
        EngineLimits(kv_cache_tokens=160),  # room for two and a half requests
        lambda served: served.stats.num_preemptions > 0,
    ),
}


@pytest.mark.parametrize("cut", CUTS)
async def test_answers_do_not_depend_on_how_the_work_is_cut(
    base: Base, plain: Served, cut: str
) -> None:
    with GraphServed(base, CUTS[cut].limits) as served:
        for sampling in (GREEDY, SEEDED):
            assert await served.answers(sampling) == await plain.answers(sampling)
        assert CUTS[cut].happened(served), f"nothing was {cut}: {served.stats}"
        assert served.stats.kv_blocks_free == served.stats.kv_blocks_total


async def test_prompts_are_scored_alike(base: Base, plain: Served) -> None:
    with GraphServed(base, EngineLimits(kv_cache_tokens=4096, max_batched_tokens=50)) as served:
        for text in TEXTS[:2]:
            wanted = (await plain.deltas(text, f"w{text}", SCORED))[0].prompt_logprobs
            found = (await served.deltas(text, f"f{text}", SCORED))[0].prompt_logprobs
            assert len(found) == len(wanted) > 40
            for one, two in zip(found[1:], wanted[1:], strict=True):
                assert one is not None
                assert two is not None
                assert one.token_id == two.token_id
                assert one.logprob == pytest.approx(two.logprob, abs=1e-3)


async def test_mixed_adapters_answer_as_each_alone(base: Base, plain: Served) -> None:
    limits = EngineLimits(kv_cache_tokens=4096, max_resident_adapters=2)
    with GraphServed(base, limits) as served:
        add_adapters(served)
        mixed = await served.answers(SEEDED, adapters=KEYS)
        assert served.stats.num_forward_passes > 2 * served.stats.num_steps, "one call for each"
    for i in range(3):
        alone = [await plain.answers(SEEDED, [TEXTS[i]], [key]) for key in KEYS]
        assert [mixed[i]] == alone[i]
        assert len({tuple(each[0]) for each in alone}) == 3


async def test_turns_in_a_small_bank_change_no_answer(base: Base, plain: Served) -> None:
    limits = EngineLimits(kv_cache_tokens=4096, max_resident_adapters=1)
    with GraphServed(base, limits) as served:
        add_adapters(served)
        assert await served.answers(GREEDY, adapters=KEYS) == await plain.answers(
            GREEDY, adapters=KEYS
        )
        assert served.stats.num_suspensions > 0


async def test_who_comes_and_who_leaves_changes_no_answer(base: Base, plain: Served) -> None:
    wanted = await plain.answers(LONG, TEXTS[:4])
    with GraphServed(base, EngineLimits(kv_cache_tokens=4096, max_num_seqs=4)) as served:

        async def ask(i: int, num_before_leaving: int | None) -> list[int]:
            prompt = tuple(served.ids(TEXTS[i % 4]))
            stream = served.engine.submit(GenerationRequest(f"r{i}", prompt, LONG))
            found: list[int] = []
            async for delta in stream:
                found += delta.token_ids
                if num_before_leaving is not None and len(found) >= num_before_leaving:
                    stream.stop()
                    break
            return found

        leaving = (None, 5, None, 40, 60, None, 3, 20, None)
        found = await asyncio.gather(*[ask(i, num) for i, num in enumerate(leaving)])
        assert all(
            each == wanted[i % 4][: len(each)] and (len(each) == 100 or leaving[i] is not None)
            for i, each in enumerate(found)
        )
        assert served.cache.num_places == 256
        for _ in range(2):
            await served.answers(SamplingParams(max_tokens=4, temperature=0), ["short"])
        assert served.cache.num_places < 128, "it has shrunk again"
        assert await served.answers(GREEDY) == await plain.answers(GREEDY)


async def test_the_whole_context_can_be_used(base: Base) -> None:
    """Also its last place, while others run beside it."""
    limits = EngineLimits(kv_cache_tokens=4096, max_model_len=100)
    with GraphServed(base, limits) as served:
        ids = served.ids(TEXTS[0])
        whole = SamplingParams(max_tokens=100 - len(ids), temperature=0, ignore_eos=True)
        alone = await served.answers(whole, TEXTS[:1])
        together = await served.answers(whole, [TEXTS[0]] * 3)
        assert together == alone * 3
        assert len(alone[0]) == 100 - len(ids)
        assert served.cache.num_places <= 101


async def test_rows_with_nan_fail_alone_and_leave_nothing_behind(base: Base) -> None:
    """Neither to those between them, nor to the next owners of their rows."""
    limits = EngineLimits(kv_cache_tokens=4096, max_num_seqs=5, max_resident_adapters=1)
    with GraphServed(base, limits) as served:
        expected = await served.answers(GREEDY, TEXTS[:2])
        served.engine.add_adapter("nan", nan_adapter(base, "self_attn.v_proj"))
        bad1, good1, bad2, good2, bad3 = await asyncio.gather(
            served.deltas(TEXTS[2], "bad1", GREEDY, "nan"),
            served.deltas(TEXTS[0], "good1", GREEDY),
            served.deltas(TEXTS[3], "bad2", GREEDY, "nan"),
            served.deltas(TEXTS[1], "good2", GREEDY),
            served.deltas(TEXTS[4], "bad3", GREEDY, "nan"),
        )
        for bad in (bad1, bad2, bad3):
            assert bad[-1].finish_reason == "error"
            assert "NonFinite" in (bad[-1].error or "")
        assert [[t for d in each for t in d.token_ids] for each in (good1, good2)] == expected
        for _ in range(2):
            assert await served.answers(GREEDY, TEXTS[:2]) == expected
        assert served.stats.is_healthy


async def test_a_call_that_fills_rows_leaves_no_nan_in_them(base: Base) -> None:
    """Two answers fail under an adapter; the row between them is only there to fill the range."""
    with GraphServed(base, EngineLimits(kv_cache_tokens=4096, max_num_seqs=3)) as served:
        served.engine.add_adapter("nan", nan_adapter(base, "self_attn.v_proj"))
        seqs = [sequence(served, text) for text in TEXTS[:3]]
        first = [Chunk(seq, 0, len(seq.token_ids)) for seq in seqs]
        served.runner.execute(first, [None] * 3)
        for chunk in first:
            chunk.seq.num_computed = chunk.num_tokens
            chunk.seq.token_ids.append(5)
        chunks = [Chunk(seq, seq.num_computed, 1) for seq in seqs]
        (alone,) = served.runner.execute(chunks[1:2], [None])
        served.runner.write_adapter(0, packer(served.model)(nan_adapter(base, "mlp.up_proj")))
        with pytest.raises(NonFiniteLogits):
            served.runner.execute([chunks[0], chunks[2]], [(0, 1), (0, 1)])
        assert served.model.lengths[-1] == (3, 1), "the row between them filled the call"
        assert served.runner.execute(chunks[1:2], [None]) == [alone]
        again = served.runner.num_forward_passes
        with pytest.raises(NonFiniteLogits):
            served.runner.execute([chunks[0], chunks[2]], [(0, 1), (0, 1)])
        served.runner.execute(chunks[1:2], [None])
        assert served.runner.num_forward_passes - again == 2


async def test_a_prompt_that_goes_on_with_nan_ends_before_anybody_gets_its_row(base: Base) -> None:
    limits = EngineLimits(kv_cache_tokens=4096, max_batched_tokens=16)
    with GraphServed(base, limits) as served:
        served.engine.add_adapter("nan", nan_adapter(base, "mlp.up_proj"))
        before = served.runner.num_forward_passes
        await served.deltas(TEXTS[0], "bad", GREEDY, "nan")
        assert served.runner.num_forward_passes - before <= 2, "not after its whole prompt"
        assert all(not tensor.isnan().any() for tensor in served.cache._tensors)


async def test_rows_in_between_are_filled_and_nobody_notices() -> None:
    """Answers under two adapters and the base, one beside the other, all read back."""
    limits = SchedulerLimits(max_num_seqs=6, max_batched_tokens=12)
    engine, runner = hash_engine(num_blocks=100, max_adapters=2, limits=limits)
    for key in ("a", "b"):
        add_fake_adapter(engine, key)
    sampling = SamplingParams(max_tokens=14, temperature=0, ignore_eos=True)
    asked = [
        GenerationRequest(f"r{i}", tuple(range(1, 3 + 7 * i % 17)), sampling, KEYS[i % 3])
        for i in range(18)
    ]
    filled = count_filled(runner)
    streams = [engine.submit(request) for request in asked]
    await run_to_idle(engine)
    for request, stream in zip(asked, streams, strict=True):
        tokens = list(request.prompt_ids)
        for _ in range(14):
            tokens.append(next_token(request.adapter, tokens))
        found = [t for delta in stream.take_ready() for t in delta.token_ids]
        assert found == tokens[len(request.prompt_ids) :]
    assert filled["calls"] > 20


def count_filled(runner: GraphBacked) -> Counter[str]:
    seen, forward = Counter[str](), runner.graph._forward

    def counted(call: Call, first_row: int | None) -> torch.Tensor:
        seen["calls"] += call.is_filled
        return forward(call, first_row)

    runner.graph._forward = counted  # type: ignore[method-assign]
    return seen


def hash_engine(
    *, num_blocks: int, max_adapters: int, limits: SchedulerLimits
) -> tuple[Engine, GraphBacked]:
    """`fake_engine` over a graph runner."""
    engine, fake = fake_engine(num_blocks=num_blocks, max_adapters=max_adapters, limits=limits)
    model = HashModel()
    cache = GraphCache(model.shape, limits.max_num_seqs, engine.spec.max_model_len)
    runner = GraphBacked(GraphRunner(model, cache, engine.spec.eos_token_ids), model)
    runner.clock = fake.clock
    spec = replace(engine.spec, shares_prefixes=False)
    return Engine(spec, runner, engine._decode, engine._pack, fake.clock), runner


def test_the_engines_promises_hold_over_a_cache_that_is_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Random interleavings as in test_interleavings.py, every token read back from its place."""
    seen, move = Counter[str](), GraphCache.move
    monkeypatch.setattr(GraphCache, "move", lambda *args: (seen.update(["moved"]), move(*args))[1])
    monkeypatch.setattr(test_interleavings, "scores", hashed_scores)

    async def scenario(chance: random.Random) -> None:
        limits = SchedulerLimits(chance.randint(3, 6), MAX_BATCHED_TOKENS, max_suspension_s=0.04)
        engine, runner = hash_engine(
            num_blocks=chance.randint(13, 24), max_adapters=chance.randint(1, 2), limits=limits
        )
        filled = count_filled(runner)
        run = Interleaving(engine, runner)
        for alias in ALIASES:
            add_fake_adapter(engine, run.key(alias))
        for _ in range(60):
            await run.apply(operation(chance))
        runner.num_transient, runner.max_tokens = 0, 10**9
        await run_to_idle(engine, max_steps=20_000)
        seen.update(run.check_answer(item) for item in run.accepted)
        await run.check_idle()
        stats = engine.stats()
        seen["preempted"] += stats.num_preemptions
        seen["suspended"] += stats.num_suspensions
        seen["out of memory"] += runner.num_out_of_memory
        seen["filled"] += filled["calls"]

    for seed in range(20):
        asyncio.run(scenario(random.Random(seed)))
    reasons = ("error", "abort", "length", "stop")
    for event in ("preempted", "suspended", "out of memory", "moved", "filled", *reasons):
        assert seen[event] > 0, f"the interleavings never reached {event!r}"


def operation(chance: random.Random) -> tuple[object, ...]:
    """One of what `Interleaving` can do."""
    prompt = chance.choices((1, 2), k=chance.randint(1, 24))
    tenant, scored = chance.choice(TENANTS), chance.choice((None, None, 0))
    submit = ("submit", chance.choice((None, *ALIASES)), prompt, chance.randint(1, 20))
    often: list[tuple[object, ...]] = [(*submit, tenant, scored), ("step", chance.randint(1, 6))]
    request, alias = chance.randint(0, 30), chance.choice(ALIASES)
    seldom: list[tuple[object, ...]] = [("abort", request), ("poison", request), ("hog", request)]
    seldom += [("memory", chance.choice((3, 12))), ("failing_write",), ("transient",)]
    seldom += [("remove", alias), ("reload", alias, chance.randint(1, 8))]
    return chance.choice(chance.choices((often, seldom), (4, 1))[0])


def test_what_one_part_of_a_step_wrote_is_kept_when_another_makes_the_cache_larger() -> None:
    """A step that failed is repeated in parts; nobody is told of the first part until the last."""
    model = HashModel()
    runner = GraphRunner(model, GraphCache(model.shape, 4, 64), frozenset())
    short, long = (hash_sequence(prompt) for prompt in (range(1, 4), range(1, 30)))
    runner.execute([Chunk(short, 0, 3)], [None])
    runner.execute([Chunk(long, 0, 29)], [None])
    short.num_computed = 3
    short.token_ids.append(7)
    (found,) = runner.execute([Chunk(short, 3, 1)], [None])
    assert isinstance(found, Sampled)
    assert found.token_id == next_token(None, [1, 2, 3, 7])


def test_an_adapter_goes_when_another_takes_one_of_its_rows() -> None:
    model = HashModel()
    runner = GraphRunner(model, GraphCache(model.shape, 4, 64), frozenset())
    one, two, three = (GraphAdapter(num_rows, {}, 1) for num_rows in (4, 4, 8))
    runner.write_adapter(0, one)
    runner.write_adapter(4, two)
    assert runner._adapters == {0: one, 4: two}
    runner.write_adapter(2, three)
    assert runner._adapters == {2: three}


def hash_sequence(prompt: range) -> Sequence:
    request = GenerationRequest(f"{prompt}", tuple(prompt), GREEDY)
    seq = Sequence(request, OutputText(lambda ids: "", ()), 0.0)
    seq.block_table.append(0)
    return seq
