"""However the work is cut, cached, preempted or repeated, the answer stays the same (float32)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
import torch

from artifacts.adapter import LoraPair, LoraWeights
from artifacts.architecture import linear_shapes
from artifacts.base import Base, open_base
from server.engine.engine import Engine
from server.engine.linear import make_linear
from server.engine.load import EngineLimits, build_engine
from server.engine.request import Delta, GenerationRequest, SamplingParams

TEXTS = [f"Where is my order {n}? I bought a kettle and a lamp {n} days ago." * 2 for n in range(6)]


@pytest.fixture(scope="module")
def base() -> Base:
    return open_base(None)


class Served:
    """An engine on the embedded base, for the length of a ``with`` block."""

    def __init__(self, base: Base, limits: EngineLimits, quantization: str = "none") -> None:
        self.base = base
        self.engine: Engine = build_engine(
            base,
            dtype="float32",
            quantization=quantization,  # type: ignore[arg-type]
            limits=limits,
        )

    def __enter__(self) -> Served:
        self.engine.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.engine.stop()

    async def deltas(
        self, text: str, name: str, sampling: SamplingParams, adapter: str | None = None
    ) -> list[Delta]:
        ids = self.base.tokenizer(text, add_special_tokens=False).input_ids
        stream = self.engine.submit(GenerationRequest(name, tuple(ids), sampling, adapter))
        return [delta async for delta in stream]

    async def answers(self, sampling: SamplingParams, texts: list[str] = TEXTS) -> list[list[int]]:
        found = await asyncio.gather(
            *[self.deltas(text, f"r{i}", sampling) for i, text in enumerate(texts)]
        )
        return [[t for d in deltas for t in d.token_ids] for deltas in found]


GREEDY = SamplingParams(max_tokens=24, temperature=0, ignore_eos=True)
SEEDED = SamplingParams(max_tokens=24, temperature=0.9, top_p=0.95, seed=11, ignore_eos=True)


@pytest.fixture(scope="module")
def plain(base: Base) -> Iterator[Served]:
    with Served(base, EngineLimits(kv_cache_tokens=4096)) as served:
        yield served


@pytest.fixture(scope="module", params=["greedy", "seeded"])
def sampling(request: pytest.FixtureRequest) -> SamplingParams:
    return GREEDY if request.param == "greedy" else SEEDED


@pytest.mark.parametrize(
    "limits",
    [
        EngineLimits(kv_cache_tokens=4096, max_batched_tokens=7),  # chunks of a few tokens
        EngineLimits(kv_cache_tokens=4096, max_num_seqs=1),  # one after the other
        EngineLimits(kv_cache_tokens=160),  # room for two and a half requests: preemption
    ],
    ids=["chunked", "sequential", "preempted"],
)
async def test_answers_do_not_depend_on_how_the_work_is_cut(
    base: Base, plain: Served, limits: EngineLimits, sampling: SamplingParams
) -> None:
    expected = await plain.answers(sampling)
    with Served(base, limits) as served:
        assert await served.answers(sampling) == expected


async def test_a_second_turn_finds_the_first_ones_keys_and_answers_the_same(base: Base) -> None:
    with Served(base, EngineLimits(kv_cache_tokens=4096)) as served:
        first = await served.deltas(TEXTS[0], "cold", GREEDY)
        again = await served.deltas(TEXTS[0], "warm", GREEDY)
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
    with Served(base, EngineLimits(kv_cache_tokens=512), quantization) as served:
        module = "model.layers.0.mlp.down_proj"
        n_out, n_in = linear_shapes(base.config)[module]
        pair = LoraPair(torch.randn(2, n_in), torch.randn(n_out, 2), 1.0)
        served.engine.add_adapter("a", LoraWeights({module: pair}, 2, 2, (), "a", 0, {}))
        deltas = await served.deltas(TEXTS[0], "base", sampling)
        adapted = await served.deltas(TEXTS[0], "adapted", sampling, "a")
    ids = [t for d in deltas for t in d.token_ids]
    assert len(ids) == 4
    assert [t for d in adapted for t in d.token_ids] != ids
