"""Exported models answer as the torch engine does, however the work is cut, placed or repeated."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import settings

from artifacts.adapter import LoraPair, LoraWeights
from artifacts.architecture import linear_shapes
from artifacts.base import Base, open_base
from server.engine import graph_cache
from server.engine.engine import Engine
from server.engine.graph_cache import GraphCache
from server.engine.load import EngineLimits
from server.engine.request import GenerationRequest, SamplingParams, TokenLogprob
from server.engine.runner_graph import GraphRunner
from server.engine.scheduler import SchedulerLimits
from tests.server.engine import test_interleavings
from tests.server.engine.fake import VOCAB, fake_engine, next_token
from tests.server.engine.graph import GraphBacked, GraphServed, HashModel
from tests.server.engine.served import GREEDY, SEEDED, TEXTS, Served, random_adapter

KEYS = (None, "a", "b")
SCORED = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True, prompt_logprobs=2)
LONG = SamplingParams(max_tokens=200, temperature=0, ignore_eos=True)


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
    for i, answer in enumerate(mixed):
        alone = [await plain.answers(SEEDED, [TEXTS[i]], [key]) for key in KEYS]
        assert [answer] == alone[i % 3]
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
            each == wanted[i % 4][: len(each)] and (len(each) == 200 or leaving[i] is not None)
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


async def test_a_row_with_nan_fails_alone_and_leaves_nothing_behind(base: Base) -> None:
    """Neither to those beside it, nor to the next owner of its row, nor as a row that fills."""
    module = "model.layers.0.self_attn.v_proj"
    n_out, n_in = linear_shapes(base.config)[module]
    pair = LoraPair(torch.full((1, n_in), torch.nan), torch.ones((n_out, 1)), 1.0)
    with GraphServed(base, EngineLimits(kv_cache_tokens=4096, max_num_seqs=3)) as served:
        expected = await served.answers(GREEDY, TEXTS[:2])
        served.engine.add_adapter("nan", LoraWeights({module: pair}, 1, 1, (), "nan", 0, {}))
        good, bad, other = await asyncio.gather(
            served.deltas(TEXTS[0], "good", GREEDY),
            served.deltas(TEXTS[1], "bad", GREEDY, "nan"),  # between them
            served.deltas(TEXTS[1], "other", GREEDY),
        )
        assert bad[-1].finish_reason == "error"
        assert "NonFinite" in (bad[-1].error or "")
        assert [[t for d in each for t in d.token_ids] for each in (good, other)] == expected
        for _ in range(2):
            assert await served.answers(GREEDY, TEXTS[:2]) == expected
        assert served.stats.is_healthy


async def test_a_prompt_that_goes_on_with_nan_ends_before_anybody_gets_its_row(base: Base) -> None:
    module = "model.layers.0.mlp.up_proj"
    n_out, n_in = linear_shapes(base.config)[module]
    pair = LoraPair(torch.full((1, n_in), torch.nan), torch.ones((n_out, 1)), 1.0)
    limits = EngineLimits(kv_cache_tokens=4096, max_batched_tokens=16)
    with GraphServed(base, limits) as served:
        served.engine.add_adapter("nan", LoraWeights({module: pair}, 1, 1, (), "nan", 0, {}))
        before = served.runner.num_forward_passes
        await served.deltas(TEXTS[0], "bad", GREEDY, "nan")
        assert served.runner.num_forward_passes - before <= 2, "not after its whole prompt"
        assert all(not tensor.isnan().any() for tensor in served.cache._tensors)


def test_the_engines_promises_hold_over_a_cache_that_is_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The interleavings of test_interleavings.py, with every token read back from its place."""
    seen = Counter[str]()

    def graph_engine(
        *, num_blocks: int, max_adapters: int, limits: SchedulerLimits
    ) -> tuple[Engine, GraphBacked]:
        engine, fake = fake_engine(num_blocks=num_blocks, max_adapters=max_adapters, limits=limits)
        model = HashModel()
        cache = GraphCache(model.shape, limits.max_num_seqs, engine.spec.max_model_len)
        runner = GraphBacked(GraphRunner(model, cache, engine.spec.eos_token_ids), model)
        runner.clock = fake.clock
        cls = type(engine.spec)
        fields = {name: getattr(engine.spec, name) for name in cls.__slots__}
        spec = cls(**{**fields, "shares_prefixes": False})
        return Engine(spec, runner, engine._decode, engine._pack, fake.clock), runner

    move = GraphCache.move
    monkeypatch.setattr(GraphCache, "move", lambda *args: (seen.update(["moved"]), move(*args))[1])
    monkeypatch.setattr(test_interleavings, "fake_engine", graph_engine)
    monkeypatch.setattr(test_interleavings, "scores", hashed_scores)
    fewer = {"max_examples": 80}
    monkeypatch.setattr(test_interleavings, "settings", lambda **kw: settings(**(kw | fewer)))
    test_interleavings.test_invariants_hold_under_random_interleavings(monkeypatch)
    assert seen["moved"] > 0


def hashed_scores(request: GenerationRequest) -> tuple[TokenLogprob | None, ...]:
    """What `HashModel` finds of a prompt."""
    if request.sampling.prompt_logprobs is None:
        return ()
    found: list[TokenLogprob | None] = [None]
    for end in range(1, len(request.prompt_ids)):
        logits = torch.zeros(VOCAB)
        logits[next_token(request.adapter, request.prompt_ids[:end])] = 9.0
        token = request.prompt_ids[end]
        found.append(TokenLogprob(token, float(torch.log_softmax(logits, dim=-1)[token])))
    return tuple(found)
