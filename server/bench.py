"""Measure the engine in process: time to first token, tokens per second, the price of adapters.

Every figure stands beside its floor on this machine, measured in the same run: decoding cannot be
faster than reading the weights once per step, a prompt not faster than its matrix products. The
last line printed is JSON.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import torch
from rich.console import Console
from rich.table import Table

from artifacts.adapter import LoraPair, LoraWeights
from artifacts.architecture import linear_shapes
from artifacts.base import Base, open_base, tensor_files
from server.engine.engine import Engine
from server.engine.load import EngineLimits, build_engine
from server.engine.request import GenerationRequest, SamplingParams

PROMPT_TOKENS, NEW_TOKENS, LONG_PROMPT = 128, 128, 512
ADAPTER_RANK, NUM_ADAPTERS = 16, 8
Mix = tuple[str, list[str | None], int, int]  # name, adapter per request, prompt, new tokens


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What the machine can do at best, in the benchmark's own run."""

    read_gb_s: float
    matmul_tflop_s: float


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured line: output tokens per second over whole requests, and first-token times."""

    name: str
    streams: int
    tokens_per_s: float
    ttft_p50_ms: float
    ttft_p90_ms: float


def measure_ceilings(dtype: torch.dtype) -> Ceilings:
    """Best of several: sequential read of 512 MB, and a 2048-cubed product in ``dtype``."""
    block = torch.ones(64 << 20, dtype=torch.float64)  # 512 MB
    square = torch.ones((2048, 2048), dtype=dtype)

    def best(run: object, times: int) -> float:
        assert callable(run)
        seconds = []
        for _ in range(times):
            started = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - started)
        return min(seconds)

    read = block.nbytes / best(block.sum, 8)
    product = 2 * 2048**3 / best(lambda: square @ square, 5)
    return Ceilings(read / 1e9, product / 1e12)


def random_adapter(base: Base, rank: int, seed: int) -> LoraWeights:
    """An all-linear adapter with random weights: the bytes of a real one, no meaning."""
    generator = torch.Generator().manual_seed(seed)
    pairs = {
        module: LoraPair(
            a=torch.randn((rank, n_in), generator=generator) / n_in**0.5,
            b=torch.randn((n_out, rank), generator=generator) * 1e-3,
            scaling=2.0,
        )
        for module, (n_out, n_in) in linear_shapes(base.config).items()
    }
    return LoraWeights(
        pairs=pairs,
        rank=rank,
        alpha=2 * rank,
        target_modules=tuple(sorted({m.rsplit(".", 1)[1] for m in pairs})),
        content_hash=f"random-{rank}-{seed}",
        num_bytes=sum(p.a.nbytes + p.b.nbytes for p in pairs.values()),
        config={},
    )


class Bench:
    """Runs request mixes against one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._count = 0

    async def run(
        self, name: str, adapters: Sequence[str | None], num_prompt: int, num_new: int
    ) -> Figure:
        """One request per entry of ``adapters``, all at once; prompts never share a prefix."""
        started = time.perf_counter()
        ttfts = await asyncio.gather(*[self._one(a, num_prompt, num_new) for a in adapters])
        seconds = time.perf_counter() - started
        ranked = sorted(ttfts)
        return Figure(
            name,
            len(adapters),
            len(adapters) * num_new / seconds,
            statistics.median(ranked) * 1e3,
            ranked[min(len(ranked) - 1, int(0.9 * len(ranked)))] * 1e3,
        )

    async def _one(self, adapter: str | None, num_prompt: int, num_new: int) -> float:
        self._count += 1
        vocab = self._engine.vocab_size
        prompt = tuple((self._count * 7919 + i * 104729) % vocab for i in range(num_prompt))
        sampling = SamplingParams(max_tokens=num_new, temperature=0, ignore_eos=True)
        request = GenerationRequest(f"bench-{self._count}", prompt, sampling, adapter)
        stream = self._engine.submit(request)
        last = None
        async for delta in stream:
            last = delta
        assert last is not None
        assert last.timing is not None
        if last.finish_reason != "length" or last.timing.ttft_s is None:
            raise RuntimeError(f"benchmark request ended with {last.finish_reason}: {last.error}")
        return last.timing.ttft_s


async def measure(engine: Engine, base: Base, repeats: int) -> list[Figure]:
    """All figures, the mixes alternating so that a noisy minute hits each alike."""
    bench = Bench(engine)
    keys: list[str] = []
    for seed in range(NUM_ADAPTERS):
        weights = random_adapter(base, ADAPTER_RANK, seed)
        engine.add_adapter(weights.content_hash, weights)
        await engine.preload_adapter(weights.content_hash)
        keys.append(weights.content_hash)
    mixes: list[Mix] = [
        (f"first token, {LONG_PROMPT}-token prompt", [None], LONG_PROMPT, 1),
        *_base_mixes(),
        ("one adapter shared, 8 streams", [keys[0]] * 8, PROMPT_TOKENS, NEW_TOKENS),
        ("eight adapters, 8 streams", [*keys], PROMPT_TOKENS, NEW_TOKENS),
    ]
    await bench.run("warm-up", [None, *keys], 32, 8)
    runs: dict[str, list[Figure]] = {name: [] for name, *_ in mixes}
    for _ in range(repeats):
        for name, adapters, num_prompt, num_new in mixes:
            runs[name].append(await bench.run(name, adapters, num_prompt, num_new))
    return [_median(figures) for figures in runs.values()]


def _base_mixes() -> list[Mix]:
    return [(f"base, {n} streams", [None] * n, PROMPT_TOKENS, NEW_TOKENS) for n in (1, 4, 8, 16)]


def _median(figures: Sequence[Figure]) -> Figure:
    return sorted(figures, key=lambda f: f.tokens_per_s)[len(figures) // 2]


def measure_and_print(
    model: str | Path | None, *, dtype: str, threads: int | None, repeats: int
) -> None:
    """Measure and print a table, then one line of JSON."""
    console = Console()
    base = open_base(model)
    limits = EngineLimits(num_threads=threads)
    engine = build_engine(base, dtype=dtype, limits=limits)
    ceilings = measure_ceilings(torch.bfloat16 if dtype == "auto" else getattr(torch, dtype))
    weight_bytes = sum(f.stat().st_size for f in tensor_files(base.path))
    engine.start()
    try:
        figures = asyncio.run(measure(engine, base, repeats))
    finally:
        engine.stop()
    steps_per_s = ceilings.read_gb_s * 1e9 / weight_bytes  # each step reads all weights once
    rss = psutil.Process().memory_info().rss
    table = Table(title=f"{base.id}, {torch.get_num_threads()} threads, {repeats} runs each")
    for column in ("mix", "tokens/s", "TTFT P50 ms", "TTFT P90 ms", "read bound"):
        table.add_column(column, justify="left" if column == "mix" else "right")
    for f in figures:
        bound = steps_per_s * f.streams
        times = (f"{f.ttft_p50_ms:.0f}", f"{f.ttft_p90_ms:.0f}")
        cells = (f"{f.tokens_per_s:.1f}", *times, f"{bound:.0f}")
        table.add_row(f.name, *cells)
    console.print(table)
    console.print(
        f"machine: reads {ceilings.read_gb_s:.1f} GB/s, multiplies {ceilings.matmul_tflop_s:.2f} "
        f"TFLOP/s; weights {weight_bytes / 1e6:.0f} MB; resident memory {rss / 1e6:.0f} MB"
    )
    report = {
        "base": base.id,
        "threads": torch.get_num_threads(),
        "ceilings": asdict(ceilings),
        "weight_bytes": weight_bytes,
        "rss_bytes": rss,
        "figures": [{**asdict(f), "read_bound": steps_per_s * f.streams} for f in figures],
    }
    print(json.dumps(report))
