"""``loraloop bench engine``: ceilings, rows, table, JSON."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import psutil
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from artifacts.base import Base, open_base
from artifacts.errors import InvalidInput
from artifacts.home import Home
from server.bench.figure import Figure
from server.bench.floors import cost_of
from server.bench.hotload import hot_load
from server.bench.loads import large_rank, main_loads, second_turn, untouched
from server.bench.machine import measure_in_child
from server.bench.memory import memory
from server.bench.report import as_json, machine_line, table
from server.bench.run import Run
from server.bench.shape import cached_base, is_shape
from server.bench.traffic import Setup
from server.bench.zipf import zipf
from server.engine.load import EngineLimits, resolve_dtype

GROUPS = (
    "ttft", "streams", "adapters", "untouched", "rank256", "chat", "hotload", "zipf", "memory",
)  # fmt: skip
MAIN = frozenset({"ttft", "streams", "adapters"})  # on one engine, taking turns
TWO_ENGINES = frozenset({"untouched", "zipf"})  # at once, taking turns
AIMED_SHAPE = "qwen2.5-0.5b"  # whose figures the aims were set for


@dataclass(frozen=True)
class Options:
    """The command line."""

    model: str | None = None
    shape: str | None = None
    dtype: str = "auto"
    threads: int | None = None
    repeats: int = 3
    only: tuple[str, ...] = ()
    is_quick: bool = False
    streams: tuple[int, ...] = (1, 4, 8, 16)  # of the group of that name


def bench_engine(options: Options) -> None:
    """Measure and print. Raises InvalidInput for a wrong option, before anything is loaded."""
    wanted = _wanted(options.only)
    console = Console(width=None if Console().is_terminal else 130)
    base = _base(options, console)
    dtype = str(resolve_dtype(base.config, options.dtype)).removeprefix("torch.")
    limits = EngineLimits(num_threads=options.threads)
    threads = options.threads or torch.get_num_threads()
    with console.status("measuring the machine"):
        before = measure_in_child(threads, dtype)
    console.print(machine_line(before, threads), highlight=False)
    with _progress() as progress:
        run = Run(
            Setup(base, options.dtype, limits),
            cost_of(base.config, getattr(torch, dtype).itemsize),
            progress,
            options.repeats,
            options.is_quick,
            options.streams,
        )
        figures = asyncio.run(_measure(run, wanted))
    with console.status("measuring the machine again"):
        after = measure_in_child(threads, dtype)
    best = before.best_of(after)
    figures = [figure.beside(best) for figure in figures]
    is_aimed = is_shape(base.config, AIMED_SHAPE) and dtype == "bfloat16"
    if not is_aimed:
        figures = [replace(figure, aim=None) for figure in figures]
    title = f"{base.id}, {dtype}, {options.repeats} rounds" + (", quick" if run.is_quick else "")
    console.print(table(title, figures))
    console.print(
        machine_line(after, threads) + " (afterwards; floors follow from the best)", highlight=False
    )
    if not is_aimed:
        console.print(f"aims are set for {AIMED_SHAPE} in bfloat16: --shape {AIMED_SHAPE}")
    facts = {
        "base": base.id,
        "dtype": dtype,
        "threads": threads,
        "rounds": options.repeats,
        "is_quick": options.is_quick,
        "weight_bytes": run.cost.stored_bytes,
        "ceilings_before_and_after": [asdict(before), asdict(after)],
    }
    print(json.dumps(as_json(facts, best, figures)))


async def _measure(run: Run, wanted: frozenset[str]) -> list[Figure]:
    figures: list[Figure] = []
    if wanted & MAIN:
        figures += await main_loads(run, wanted & MAIN)
    for group, measure in (
        ("untouched", untouched),
        ("rank256", large_rank),
        ("chat", second_turn),
        ("hotload", hot_load),
        ("zipf", zipf),
    ):
        if group not in wanted:
            continue
        if group in TWO_ENGINES and not _has_room_for_two(run):
            run.progress.console.print(f"{group} left out: two engines would not fit into memory")
            continue
        figures += await measure(run)
    if "memory" in wanted:
        figures += await asyncio.to_thread(memory, run)
    return figures


def _has_room_for_two(run: Run) -> bool:
    """Weights may be there twice while they are loaded and packed."""
    return 3 * run.cost.stored_bytes < psutil.virtual_memory().available


def _wanted(only: Sequence[str]) -> frozenset[str]:
    for group in only:
        if group not in GROUPS:
            raise InvalidInput(f"--only {group!r} is unknown; choose of {', '.join(GROUPS)}")
    return frozenset(only or GROUPS)


def _base(options: Options, console: Console) -> Base:
    if options.model is not None and options.shape is not None:
        raise InvalidInput("--model and --shape name two bases; give one of them")
    if options.shape is None:
        return open_base(options.model)
    with console.status(f"making a base of shape {options.shape} (once)"):
        return open_base(cached_base(options.shape, Home.open()))


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
