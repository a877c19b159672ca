"""Percentiles of durations in bounded memory. Pure arithmetic; knows no request and no clock.

A DDSketch (Masson, Rim and Lee, 2019): logarithmic buckets, so that a percentile is wrong by at
most 1 % of its value, whatever the distribution and however many values there were. Sketches add
up, which is what makes sliding windows cheap.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable
from itertools import chain

RELATIVE_ERROR = 0.01
MIN_VALUE = 1e-6  # seconds; anything shorter counts as this
_GAMMA = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
_LOG_GAMMA = math.log(_GAMMA)


class DurationSketch:
    """How often durations of each size came, in seconds."""

    __slots__ = ("_buckets", "_packed", "count", "maximum", "minimum", "total")

    def __init__(self) -> None:
        self._buckets: dict[int, int] = {}
        self._packed: array[int] | None = None  # index, count, index, count, …: counted as well
        self.count = 0
        self.total = 0.0
        self.minimum = math.inf
        self.maximum = 0.0

    def add(self, seconds: float, count: int = 1) -> None:
        """Count ``seconds`` once, or ``count`` times."""
        value = max(seconds, MIN_VALUE)
        index = math.ceil(math.log(value) / _LOG_GAMMA)
        self._buckets[index] = self._buckets.get(index, 0) + count
        self.count += count
        self.total += value * count
        self.minimum = min(self.minimum, value)
        self.maximum = max(self.maximum, value)

    def pack(self) -> None:
        """Keep what was counted so far in a fifth of the memory."""
        if self._buckets:
            whole = DurationSketch()
            whole.merge(self)  # each bucket once
            width = "i" if self.count < 1 << 31 else "q"
            self._packed = array(width, chain.from_iterable(whole._buckets.items()))
            self._buckets = {}

    def merge(self, other: DurationSketch) -> None:
        """Count everything that ``other`` counted."""
        for index, count in other._items():
            self._buckets[index] = self._buckets.get(index, 0) + count
        self.count += other.count
        self.total += other.total
        self.minimum = min(self.minimum, other.minimum)
        self.maximum = max(self.maximum, other.maximum)

    def percentile(self, q: float) -> float | None:
        """The smallest duration that at least ``q`` of all do not exceed (nearest rank), ±1 %."""
        if self.count == 0:
            return None
        rank = max(1, math.ceil(q * self.count))
        seen = 0
        for index, count in sorted(self._items()):
            seen += count
            if seen >= rank:
                middle = 2 * _GAMMA**index / (_GAMMA + 1)
                return min(max(middle, self.minimum), self.maximum)
        return self.maximum

    def cumulative(self, bounds: Iterable[float]) -> list[int]:
        """How many durations lie at or below each bound (to 1 %), for a Prometheus histogram."""
        items = sorted(self._items())
        counts, seen, at = [], 0, 0
        for bound in bounds:
            limit = math.log(bound) / _LOG_GAMMA if bound < math.inf else math.inf
            while at < len(items) and items[at][0] <= limit + 0.5:
                seen += items[at][1]
                at += 1
            counts.append(seen)
        return counts

    def _items(self) -> Iterable[tuple[int, int]]:
        """Bucket and count, in no order; a bucket may come twice."""
        if self._packed is None:
            return self._buckets.items()
        return chain(self._buckets.items(), zip(*[iter(self._packed)] * 2, strict=True))
