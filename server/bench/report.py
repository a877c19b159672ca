"""The benchmark's table for people and its JSON for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table

from server.bench.figure import Figure
from server.bench.machine import Ceilings

COLUMNS = ("figure", "measured", "spread", "floor", "of floor", "aim", "")


def shown(value: float, unit: str) -> str:
    """Three digits that matter, and the unit."""
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:.{digits}f} {unit}"


def table(title: str, figures: Sequence[Figure]) -> Table:
    """A row per figure; floors and aims stand in the figure's unit."""
    made = Table(title=title)
    for column in COLUMNS:
        made.add_column(column, justify="left" if column in ("figure", "") else "right")
    for figure in figures:
        low, high = min(figure.samples), max(figure.samples)
        spread = "" if len(figure.samples) < 2 else f"{_bare(low)}-{_bare(high)}"
        made.add_row(
            figure.title,
            shown(figure.value, figure.unit),
            spread,
            "" if figure.floor is None else _bare(figure.floor),
            "" if figure.of_floor is None else f"{100 * figure.of_floor:.0f} %",
            "" if figure.aim is None else str(figure.aim),
            figure.verdict,
        )
    return made


def machine_line(ceilings: Ceilings, num_threads: int) -> str:
    """What the floors are made of."""
    return (
        f"machine, {num_threads} threads: reads {ceilings.read_bytes_s / 1e9:.1f} GB/s, "
        f"multiplies {ceilings.matmul_flop_s / 1e12:.2f} TFLOP/s"
    )


def as_json(facts: dict[str, Any], ceilings: Ceilings, figures: Sequence[Figure]) -> dict[str, Any]:
    """Everything; ``ceilings`` are those that the floors follow from."""
    return {
        **facts,
        "ceilings": asdict(ceilings),
        "rows": [figure.as_json() for figure in figures],
    }


def _bare(value: float) -> str:
    return shown(value, "").strip()
