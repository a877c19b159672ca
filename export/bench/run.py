"""Exports every form once, then measures each in a process of its own, in turns.

A noisy minute of the machine so meets all forms alike; each figure is the median of its rounds.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from artifacts.errors import Corrupt, InvalidInput
from artifacts.exported.formats import FORMATS, format_named
from export.bench.table import BASELINE, Row
from export.forms.form import Progress
from export.proof.report import Proof, read_proof
from export.run import Asked, Exported, export_forms

ALL = tuple(name for name in FORMATS if name != "adapter")  # which is no model
BATCHES = (1, 8)

Figures = dict[str, float]
Measure = Callable[[Path, int | None], Figures]


@dataclass(frozen=True, slots=True)
class BenchAsked:
    """``output`` None: a temporary folder, which goes afterwards."""

    adapter: str
    formats: tuple[str, ...] = ALL
    base: str | None = None
    output: Path | None = None
    rounds: int = 3
    num_threads: int | None = None
    is_verified: bool = True


def bench_forms(asked: BenchAsked, progress: Progress, measure: Measure | None = None) -> list[Row]:
    """A row for each format, the baseline first. Raises what exporting and measuring raise.

    What fails its proof is measured too: the table shows what it loses.
    """
    if asked.rounds < 1:
        raise InvalidInput(f"rounds={asked.rounds} must be at least 1", param="rounds")
    for name in asked.formats:
        format_named(name)
        if name == "adapter":
            raise InvalidInput("adapter is no model of its own; leave it out", param="format")
    names = (BASELINE, *(name for name in dict.fromkeys(asked.formats) if name != BASELINE))
    with _folder(asked.output) as output:
        done = export_forms(
            Asked(
                adapter=asked.adapter,
                output=output,
                formats=names,
                base=asked.base,
                is_verified=asked.is_verified,
                allow_unverified=True,
            ),
            progress,
        )
        return _measured(done, asked, progress, measure or measure_in_process)


def _measured(
    done: Sequence[Exported], asked: BenchAsked, progress: Progress, measure: Measure
) -> list[Row]:
    found: dict[str, list[Figures]] = {each.format: [] for each in done}
    runnable = [each for each in done if FORMATS[each.format].is_servable]
    for number in range(asked.rounds):
        for i, each in enumerate(runnable):
            what = f"measuring {each.format}, round {number + 1} of {asked.rounds}"
            progress(number * len(runnable) + i, asked.rounds * len(runnable), what)
            found[each.format].append(measure(each.folder, asked.num_threads))
    return [_row(each, found[each.format]) for each in done]


def _row(exported: Exported, rounds: Sequence[Figures]) -> Row:
    def median(key: str) -> float | None:
        return statistics.median(figures[key] for figures in rounds) if rounds else None

    return Row(
        format=exported.format,
        size_bytes=_weights_bytes(exported.folder),
        load_s=median("load_s"),
        ttft_p90_s=median("ttft_p90_s"),
        tokens_per_s=median("tokens_per_s_1"),
        tokens_per_s_8=median("tokens_per_s_8"),
        peak_bytes=median("peak_memory_bytes"),
        perplexity_percent=_loss(read_proof(exported.folder)),
    )


def _weights_bytes(folder: Path) -> int:
    from export.proof.measure import sizes

    return int(sizes(folder)["weights_bytes"])


def _loss(proof: Proof | None) -> float | None:
    return None if proof is None else proof.figures.get("perplexity_change_percent")


def measure_in_process(folder: Path, num_threads: int | None) -> Figures:
    """Raises Corrupt with what the process said last."""
    command = [sys.executable, "-m", "export.proof.measure", str(folder), "--batch"]
    command += [str(size) for size in BATCHES]
    if num_threads is not None:
        command += ["--threads", str(num_threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise Corrupt(f"{folder} could not be measured: {said[-1]}")
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


@contextmanager
def _folder(output: Path | None) -> Iterator[Path]:
    if output is not None:
        yield output
        return
    with tempfile.TemporaryDirectory(prefix="loraloop-bench-") as name:
        yield Path(name) / "exports"
