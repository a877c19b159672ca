"""Bit for bit the same logits on AMX, whatever runs beside a request and however it is cut."""

from __future__ import annotations

import asyncio
import dataclasses
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psutil
import pytest
import torch

from artifacts.adapter import LoraPair, LoraWeights
from artifacts.architecture import linear_shapes
from artifacts.base import Base, open_base
from server.engine.amx.decoder import PackedStep
from server.engine.engine import Engine
from server.engine.load import EngineLimits, build_engine
from server.engine.request import FinishReason, GenerationRequest, SamplingParams
from server.engine.runner_amx import AmxRunner
from tests.server.engine.amx import LogitsRecord, needs_amx

pytestmark = needs_amx

NUM_TOKENS = 12
TARGETS = {  # adapter → rank and what it changes
    "a": (1, ("q_proj", "down_proj")),
    "b": (8, ("_proj",)),
    "c": (20, ("v_proj", "up_proj", "o_proj")),
    "d": (64, ("_proj",)),
}


@dataclass(frozen=True)
class Job:
    """One request; the same name means the same prompt and adapter everywhere."""

    name: str
    prompt: tuple[int, ...]
    adapter: str | None


def make_jobs() -> list[Job]:
    """Twenty streams of 1 … 115 tokens over the base and four adapters; some share beginnings."""
    generator = torch.Generator().manual_seed(3)
    shared = torch.randint(10, 6000, (40,), generator=generator).tolist()
    jobs = []
    for i in range(20):
        own = torch.randint(10, 6000, (1 + 4 * i,), generator=generator).tolist()
        prompt = shared + own if i % 3 == 0 else own
        jobs.append(Job(f"r{i}", tuple(prompt), [None, *TARGETS][i % 5]))
    return jobs


JOBS = make_jobs()


def adapter(base: Base, key: str) -> LoraWeights:
    rank, targets = TARGETS[key[0]]
    generator = torch.Generator().manual_seed(ord(key[0]))
    pairs = {
        module: LoraPair(
            torch.randn(rank, n_in, generator=generator) / 8,
            torch.randn(n_out, rank, generator=generator) / 8,
            0.5,
        )
        for module, (n_out, n_in) in linear_shapes(base.config).items()
        if module.endswith(targets)
    }
    return LoraWeights(pairs, rank, 0, (), key, 0, {})


class Served:
    """A started engine with all adapters, for the length of a ``with`` block."""

    def __init__(self, base: Base, limits: EngineLimits) -> None:
        self.base = base
        self.engine: Engine = build_engine(base, dtype="bfloat16", kernels="amx", limits=limits)
        for key in TARGETS:
            self.engine.add_adapter(key, adapter(base, key))

    def __enter__(self) -> Served:
        self.engine.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.engine.stop()

    async def ends(self, jobs: list[Job]) -> list[FinishReason | None]:
        """How each of the jobs ends, run together."""
        sampling = SamplingParams(max_tokens=NUM_TOKENS, temperature=0, ignore_eos=True)

        async def one(job: Job) -> FinishReason | None:
            request = GenerationRequest(job.name, job.prompt, sampling, job.adapter)
            return [delta async for delta in self.engine.submit(request)][-1].finish_reason

        return list(await asyncio.gather(*[one(job) for job in jobs]))


@pytest.fixture(scope="module")
def base() -> Base:
    return open_base(None)


Expected = dict[tuple[str, int], torch.Tensor]


@pytest.fixture(scope="module")
def alone(base: Base) -> Expected:
    """Every logit of every job that has a fresh engine for itself."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        record = LogitsRecord(monkeypatch)
        # A cache without room for what earlier jobs left.
        limits = EngineLimits(kv_cache_tokens=144, max_num_seqs=1, num_threads=1)
        with Served(base, limits) as served:
            for job in JOBS:
                assert asyncio.run(served.ends([job])) == ["length"]
                served.engine._blocks._block_of.clear()
                served.engine._blocks._hash_of.clear()
    assert len(record.logits) == len(JOBS) * NUM_TOKENS
    return record.logits


def check(record: LogitsRecord, expected: Expected, names: set[str] | None = None) -> None:
    chosen = {k: v for k, v in expected.items() if names is None or k[0] in names}
    assert chosen.keys() <= record.logits.keys(), "another token was chosen, or none"
    different = [k for k, logits in chosen.items() if not torch.equal(record.logits[k], logits)]
    assert not different


@pytest.mark.parametrize(
    "limits",
    [
        EngineLimits(num_threads=1),
        EngineLimits(num_threads=2),
        EngineLimits(num_threads=2, max_batched_tokens=7),
        EngineLimits(num_threads=1, max_batched_tokens=20),
        EngineLimits(num_threads=2, max_batched_tokens=100),
        EngineLimits(num_threads=1, max_num_seqs=3),
        EngineLimits(num_threads=2, kv_cache_tokens=400),
        EngineLimits(num_threads=1, max_resident_adapters=1),
    ],
    ids=[
        "one thread",
        "two threads",
        "chunks of 7",
        "chunks of 20",
        "chunks of 100",
        "three at once",
        "preempted",
        "one place for adapters",
    ],
)
async def test_logits_are_those_of_the_request_alone(
    base: Base, alone: Expected, limits: EngineLimits, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = LogitsRecord(monkeypatch)
    with Served(base, limits) as served:
        assert isinstance(served.engine._runner, AmxRunner)
        assert set(await served.ends(JOBS)) == {"length"}
        check(record, alone)
        if limits.kv_cache_tokens is not None:
            assert served.engine.stats().num_preemptions > 0
        record.logits.clear()
        assert set(await served.ends(JOBS[::-1])) == {"length"}  # now from the prefix cache
        check(record, alone)


@pytest.mark.parametrize("num_streams", range(1, 20))
async def test_logits_do_not_depend_on_the_number_of_streams(
    base: Base, alone: Expected, served: Served, num_streams: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = LogitsRecord(monkeypatch)
    jobs = JOBS[num_streams % 7 :][:num_streams]
    await served.ends(jobs)
    check(record, alone, {job.name for job in jobs})


@pytest.fixture(scope="module")
def served(base: Base, alone: Expected) -> Iterator[Served]:
    with Served(base, EngineLimits(kv_cache_tokens=4096, num_threads=2)) as engine:
        yield engine


async def test_adapters_come_and_go_under_traffic(
    base: Base, alone: Expected, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = LogitsRecord(monkeypatch)
    engine = served.engine
    traffic = asyncio.ensure_future(served.ends(JOBS * 1))
    for i in range(60):
        key = f"{'abcd'[i % 4]}-{i}"  # the same weights under a new key
        weights = adapter(base, key)
        await asyncio.to_thread(engine.add_adapter, key, weights)
        await engine.preload_adapter(key)
        job = next(j for j in JOBS if j.adapter == key[0])
        copy = Job(f"copy{i}", job.prompt, key)
        if i % 3 == 0:
            assert await served.ends([copy]) == ["length"]
            ours = record.of(copy.name)
            expected = [alone[job.name, len(job.prompt) + n] for n in range(NUM_TOKENS)]
            assert torch.equal(ours, torch.stack(expected))
        await engine.remove_adapter(key)
    assert set(await traffic) == {"length"}
    check(record, alone)
    assert engine.known_adapters() == set(TARGETS)


async def test_memory_is_flat_over_two_hundred_loads(base: Base, served: Served) -> None:
    async def cycle(number: int) -> None:
        engine, key = served.engine, f"d-cycle{number}"
        engine.add_adapter(key, weights)
        await engine.preload_adapter(key)
        await engine.remove_adapter(key)

    weights, process = adapter(base, "d"), psutil.Process()
    for i in range(20):
        await cycle(i)
    before = process.memory_info().rss
    for i in range(200):
        await cycle(i)
    size = served.engine._adapters._host["d"].num_bytes
    assert process.memory_info().rss - before < 10 * size


async def test_steps_that_fail_again_and_again_change_no_answer(
    alone: Expected, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = LogitsRecord(monkeypatch)
    runner = served.engine._runner
    assert isinstance(runner, AmxRunner)
    forward, calls = runner._decoder.forward, iter(range(10**9))

    def failing(step: PackedStep) -> torch.Tensor:
        logits = forward(step)
        if next(calls) % 3 == 0 and len(step.spans) > 1:
            raise RuntimeError("after the work was done")
        return logits

    monkeypatch.setattr(runner._decoder, "forward", failing)
    assert set(await served.ends(JOBS)) == {"length"}
    check(record, alone)


async def test_the_memory_of_an_unloaded_adapter_goes_at_once(
    base: Base, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed: list[weakref.ref[Any]] = []
    pack = served.engine._pack

    def note(weights: LoraWeights) -> Any:
        made = pack(weights)
        packed.append(weakref.ref(made))
        return made

    monkeypatch.setattr(served.engine, "_pack", note)
    gone = dataclasses.replace(adapter(base, "a"), content_hash="gone")
    for _ in range(2):  # the second time over a known one
        served.engine.add_adapter("gone", gone)
    await served.engine.preload_adapter("gone")
    assert await served.ends([Job("one", JOBS[0].prompt, "gone")]) == ["length"]
    await served.engine.remove_adapter("gone")
    assert [ref() for ref in packed] == [None, None]


@pytest.mark.parametrize("side", ["a", "b"])
async def test_a_request_with_nan_ends_alone(
    base: Base, alone: Expected, served: Served, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = adapter(base, "b")
    pairs = dict(good.pairs)
    module = "model.layers.1.mlp.up_proj"
    pair = pairs[module]
    nan = torch.full_like(pair.a if side == "a" else pair.b, torch.nan)
    pairs[module] = LoraPair(*((nan, pair.b) if side == "a" else (pair.a, nan)), 1.0)
    served.engine.add_adapter("nan", LoraWeights(pairs, 8, 0, (), "nan", 0, {}))
    record = LogitsRecord(monkeypatch)
    *ends, bad = await served.ends([*JOBS[:10], Job("bad", JOBS[4].prompt, "nan")])
    assert (set(ends), bad) == ({"length"}, "error")
    check(record, alone, {job.name for job in JOBS[:10]})
    record.logits.clear()
    await served.ends(JOBS)  # over the blocks that it gave back
    check(record, alone)
    await served.engine.remove_adapter("nan")


async def test_a_token_outside_the_vocabulary_ends_its_request_only(
    alone: Expected, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = LogitsRecord(monkeypatch)
    bad = [Job("high", (5, 6144), None), Job("low", (-1, 5), "a")]
    assert await served.ends([*JOBS[:3], *bad]) == ["length"] * 3 + ["error"] * 2
    check(record, alone, {job.name for job in JOBS[:3]})


async def test_engines_of_one_process_share_the_threads(
    base: Base, alone: Expected, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = LogitsRecord(monkeypatch)
    small = Served(base, EngineLimits(kv_cache_tokens=2048, num_threads=1))
    # A second engine with more threads than the first one has room for.
    with small, Served(base, EngineLimits(kv_cache_tokens=2048, num_threads=3)) as large:
        ends = await asyncio.gather(small.ends(JOBS[:10]), large.ends(JOBS[10:]))
    assert [set(e) for e in ends] == [{"length"}] * 2
    check(record, alone)
