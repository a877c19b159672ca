"""One measured figure beside its floor and its aim. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from server.bench.machine import Ceilings

Bound = Callable[[Ceilings], float]
Unit = Literal["ms", "s", "MiB", "x", "x step", "% of time", "tok/s", "%"]
GROWING = ("tok/s", "%")  # more is better


@dataclass(frozen=True, slots=True)
class Aim:
    """At most or at least this much, in the figure's unit."""

    limit: float
    is_upper: bool

    def is_met(self, value: float) -> bool:
        return value <= self.limit if self.is_upper else value >= self.limit

    def __str__(self) -> str:
        return f"{'<=' if self.is_upper else '>='} {self.limit:g}"


def at_most(limit: float) -> Aim:
    return Aim(limit, True)


def at_least(limit: float) -> Aim:
    return Aim(limit, False)


@dataclass(frozen=True, slots=True)
class Figure:
    """A row of the table: the median of its samples, their spread, its floor and its aim.

    ``bound`` gives, for the machine's ceilings, what bytes or operations allow in the figure's own
    unit: a time from below, a rate or a share from above. ``floor`` is that number once the
    ceilings are settled, see `beside`. ``details`` go into the JSON only.
    """

    key: str
    title: str
    unit: Unit
    samples: tuple[float, ...]
    bound: Bound | None = None
    aim: Aim | None = None
    details: dict[str, Any] = field(default_factory=dict)
    floor: float | None = None

    def beside(self, ceilings: Ceilings) -> Figure:
        """The figure with its floor under these ceilings."""
        return self if self.bound is None else replace(self, floor=self.bound(ceilings))

    @property
    def value(self) -> float:
        return statistics.median(self.samples)

    @property
    def of_floor(self) -> float | None:
        """How near the floor, 1 is on it; whichever way the unit counts."""
        if self.floor is None or not self.value:
            return None
        return self.value / self.floor if self.unit in GROWING else self.floor / self.value

    @property
    def verdict(self) -> str:
        """``met``, ``missed``, or nothing without an aim."""
        if self.aim is None:
            return ""
        return "met" if self.aim.is_met(self.value) else "missed"

    def as_json(self) -> dict[str, Any]:
        return {
            "key": self.key,
            "figure": self.title,
            "unit": self.unit,
            "value": self.value,
            "spread": [min(self.samples), max(self.samples)],
            "samples": list(self.samples),
            "floor": self.floor,
            "of_floor": self.of_floor,
            "aim": None if self.aim is None else asdict(self.aim),
            "verdict": self.verdict or None,
            **self.details,
        }


def fixed(value: float) -> Bound:
    """A bound that does not depend on the machine."""
    return lambda ceilings: value


def ratios(values: Sequence[float], base: Sequence[float]) -> tuple[float, ...]:
    """Round by round in per cent: a noisy minute hits both halves of a pair alike."""
    return tuple(100 * value / other for value, other in zip(values, base, strict=True))
