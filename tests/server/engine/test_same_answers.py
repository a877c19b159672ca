"""However the work is cut, cached, preempted or repeated, the answer stays the same (float32)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import pytest
import torch

from artifacts.adapter import LoraPair, LoraWeights
from artifacts.architecture import linear_shapes
from artifacts.base import Base, open_base
from server.engine.errors import OutOfMemory
from server.engine.linear import make_linear
from server.engine.load import EngineLimits
from server.engine.request import EngineStats, Result, SamplingParams
from server.engine.scheduler import Chunk
from tests.server.engine.served import GREEDY, SEEDED, TEXTS, Served, random_adapter

if TYPE_CHECKING:
    from server.engine.bank import GroupBank
    from server.engine.runner import TorchRunner


@pytest.fixture(scope="module")
def base() -> Base:
    return open_base(None)


@pytest.fixture(scope="module")
def plain(base: Base) -> Iterator[Served]:
    with Served(base, EngineLimits(kv_cache_tokens=4096)) as served:
        yield served


@pytest.fixture(scope="module", params=["greedy", "seeded"])
def sampling(request: pytest.FixtureRequest) -> SamplingParams:
    return GREEDY if request.param == "greedy" else SEEDED


@dataclass(frozen=True)
class Cut:
    """Another way to do the same work, and how its counters show that it was really done so."""

    limits: EngineLimits
    happened: Callable[[EngineStats], bool]


CUTS = {
    "chunked": Cut(
        EngineLimits(kv_cache_tokens=4096, max_batched_tokens=7),
        # six prompts of 44 tokens and more, seven tokens at a time
        lambda stats: stats.num_forward_passes > 6 * 44 // 7 + 24,
    ),
    "alone": Cut(
        EngineLimits(kv_cache_tokens=4096, max_num_seqs=1),
        lambda stats: stats.num_forward_passes >= 6 * 24,
    ),
    "batched": Cut(
        EngineLimits(kv_cache_tokens=4096),
        lambda stats: stats.num_forward_passes < 3 * 24,
    ),
    "preempted": Cut(
        EngineLimits(kv_cache_tokens=160),  # room for two and a half requests
        lambda stats: stats.num_preemptions > 0,
    ),
}


@pytest.mark.parametrize("cut", list(CUTS))
async def test_answers_do_not_depend_on_how_the_work_is_cut(
    base: Base, plain: Served, cut: str, sampling: SamplingParams
) -> None:
    expected = await plain.answers(sampling)
    with Served(base, CUTS[cut].limits) as served:
        assert await served.answers(sampling) == expected
        assert CUTS[cut].happened(served.stats), f"nothing was {cut}: {served.stats}"


async def test_turns_in_a_small_bank_change_no_answer(base: Base, sampling: SamplingParams) -> None:
    keys = (None, "a", "b", "c")
    answers = []
    for num_places in (3, 1):
        limits = EngineLimits(kv_cache_tokens=4096, max_resident_adapters=num_places)
        with Served(base, limits) as served:
            for key in keys[1:]:
                served.engine.add_adapter(str(key), random_adapter(base, str(key)))
            answers.append(await served.answers(sampling, adapters=keys))
            assert (served.stats.num_suspensions > 0) is (num_places == 1)
    assert answers[0] == answers[1]


async def test_memory_that_runs_out_changes_no_answer(
    base: Base, plain: Served, sampling: SamplingParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = await plain.answers(sampling)
    with Served(base, EngineLimits(kv_cache_tokens=4096)) as served:
        execute, num_failed = served.engine._runner.execute, 0

        def starved(chunks: Sequence[Chunk], places: Sequence[Any]) -> list[Result]:
            nonlocal num_failed
            sampled = execute(chunks, places)
            if sum(chunk.num_tokens for chunk in chunks) > 3:
                num_failed += 1
                raise OutOfMemory("no memory, found out at the very end of the step")
            return sampled

        monkeypatch.setattr(served.engine._runner, "execute", starved)
        assert await served.answers(sampling) == expected
        assert num_failed > 1


async def test_base_requests_touch_nothing_of_the_adapters(base: Base, plain: Served) -> None:
    """Whatever reads or writes an adapter's weights would raise here."""

    class Untouchable:
        def __getattr__(self, name: str) -> object:
            raise AssertionError(f"a base request used {name} of an adapter's weights")

    with Served(base, EngineLimits(kv_cache_tokens=4096)) as served:
        served.engine.add_adapter("a", random_adapter(base, "a"))
        await served.engine.preload_adapter("a")
        bank = cast("TorchRunner", served.engine._runner)._bank
        bank.groups[:] = [cast("GroupBank", Untouchable()) for _ in bank.groups]
        assert await served.answers(GREEDY) == await plain.answers(GREEDY)
        adapted = await served.deltas(TEXTS[0], "adapted", GREEDY, "a")
        assert adapted[-1].finish_reason == "error", "the test sees what is touched"


async def test_a_second_turn_finds_the_first_ones_keys_and_answers_the_same(
    base: Base, sampling: SamplingParams
) -> None:
    with Served(base, EngineLimits(kv_cache_tokens=4096)) as served:
        first = await served.deltas(TEXTS[0], "cold", sampling)
        again = await served.deltas(TEXTS[0], "warm", sampling)
        timing = again[-1].timing
        assert timing is not None
        assert timing.num_cached_tokens >= timing.num_prompt_tokens - 16
        assert [d.token_ids for d in again] == [d.token_ids for d in first]


async def test_a_request_with_nan_logits_ends_alone_and_leaves_no_nan_behind(base: Base) -> None:
    with Served(base, EngineLimits(kv_cache_tokens=256)) as served:
        expected = await served.answers(GREEDY, TEXTS[:2])
        shapes = linear_shapes(base.config)
        module = "model.layers.0.self_attn.v_proj"
        n_out, n_in = shapes[module]
        pair = LoraPair(torch.full((1, n_in), torch.nan), torch.ones((n_out, 1)), 1.0)
        served.engine.add_adapter("nan", LoraWeights({module: pair}, 1, 1, (), "nan", 0, {}))
        bad, *good = await asyncio.gather(
            served.deltas(TEXTS[0], "bad", GREEDY, "nan"),
            *[served.deltas(text, f"g{i}", GREEDY) for i, text in enumerate(TEXTS[:2])],
        )
        assert bad[-1].finish_reason == "error"
        assert [[t for d in deltas for t in d.token_ids] for deltas in good] == expected
        # The cache is small enough that the freed blocks are used again.
        for _ in range(3):
            assert await served.answers(GREEDY, TEXTS[:2]) == expected
        assert served.engine.stats().is_healthy


async def test_streamed_text_is_the_decoded_answer(plain: Served) -> None:
    deltas = await plain.deltas(TEXTS[0], "text", SEEDED)
    ids = [t for d in deltas for t in d.token_ids]
    text = "".join(d.text for d in deltas)
    assert text == plain.base.tokenizer.decode(ids, skip_special_tokens=True)


async def test_a_thousand_loads_and_unloads_leave_nothing_behind(plain: Served) -> None:
    engine, base = plain.engine, plain.base
    pairs = {
        module: LoraPair(torch.randn(2, n_in), torch.randn(n_out, 2), 1.0)
        for module, (n_out, n_in) in linear_shapes(base.config).items()
    }
    for i in range(1000):
        key = f"cycle{i}"
        engine.add_adapter(key, LoraWeights(pairs, 2, 4, (), key, 0, {}))
        if i % 20 == 0:
            await engine.preload_adapter(key)
        await engine.remove_adapter(key)
    assert engine.known_adapters() == set()
    assert engine.stats().resident_adapters == {}
    assert engine._adapters._host == {}
    assert not engine._adapters._users


@pytest.mark.parametrize(("quantization", "tolerance"), [("nf4", 0.1), ("int8", 0.02)])
def test_quantised_products_stay_near_the_exact_ones(quantization: str, tolerance: float) -> None:
    torch.manual_seed(0)
    weight, bias, x = torch.randn(256, 128) * 0.05, torch.randn(256), torch.randn(5, 128)
    exact = torch.nn.functional.linear(x, weight, bias)
    linear = make_linear(weight.clone(), bias.clone(), quantization)  # type: ignore[arg-type]
    with torch.inference_mode():
        error = (linear(x) - exact).norm() / exact.norm()
    assert 0 < error < tolerance


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
async def test_a_quantised_base_answers_and_takes_adapters(base: Base, quantization: str) -> None:
    sampling = SamplingParams(max_tokens=4, temperature=0, ignore_eos=True)
    with Served(base, EngineLimits(kv_cache_tokens=512), quantization=quantization) as served:
        module = "model.layers.0.mlp.down_proj"
        n_out, n_in = linear_shapes(base.config)[module]
        pair = LoraPair(torch.randn(2, n_in), torch.randn(n_out, 2), 1.0)
        served.engine.add_adapter("a", LoraWeights({module: pair}, 2, 2, (), "a", 0, {}))
        deltas = await served.deltas(TEXTS[0], "base", sampling)
        adapted = await served.deltas(TEXTS[0], "adapted", sampling, "a")
    ids = [t for d in deltas for t in d.token_ids]
    assert len(ids) == 4
    assert [t for d in adapted for t in d.token_ids] != ids
