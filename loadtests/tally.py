"""What the clients saw, per answering version: counts, TTFT and inter-token percentiles.

Locust rounds its percentiles to two digits; these are exact. Workers ship theirs to the master.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Any

from loadtests.sse import Answer

UNKNOWN = "(none answered)"


def percentile(values: list[float], q: float) -> float | None:
    """The ``q``-th percentile (0…100), linear between neighbours; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    place = (len(ordered) - 1) * q / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


@dataclass
class Row:
    """One version's answers. Times in milliseconds, ``busy_s`` is the sum of all answers' times."""

    num_requests: int = 0
    num_errors: int = 0
    num_tokens: int = 0
    busy_s: float = 0.0
    ttft_ms: list[float] = field(default_factory=list)
    itl_ms: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """JSON without the samples; ``tokens_per_s`` is that of one stream."""
        return {
            "requests": self.num_requests,
            "errors": self.num_errors,
            "tokens": self.num_tokens,
            "tokens_per_s": self.num_tokens / self.busy_s if self.busy_s else None,
            "ttft_ms": {f"p{q}": percentile(self.ttft_ms, q) for q in (50, 90, 99)},
            "itl_ms": {f"p{q}": percentile(self.itl_ms, q) for q in (50, 90, 99)},
        }


@dataclass
class Tally:
    """All rows of one run; ``first_s`` and ``last_s`` are unix times of the answers' ends."""

    rows: dict[str, Row] = field(default_factory=dict)
    first_s: float | None = None
    last_s: float | None = None

    def add(self, version: str, answer: Answer, total_s: float) -> None:
        row = self._row(version)
        row.num_tokens += answer.num_tokens
        row.busy_s += total_s
        if answer.ttft_s is not None:
            row.ttft_ms.append(answer.ttft_s * 1000)
        row.itl_ms.extend(gap * 1000 for gap in answer.gaps_s)

    def add_error(self, version: str | None) -> None:
        self._row(version or UNKNOWN).num_errors += 1

    def _row(self, version: str) -> Row:
        row = self.rows.setdefault(version, Row())
        row.num_requests += 1
        self.last_s = time.time()
        self.first_s = self.last_s if self.first_s is None else self.first_s
        return row

    def everything(self) -> Row:
        """All rows in one."""
        total = Row()
        for row in self.rows.values():
            _merge(total, row)
        return total

    def drain(self) -> dict[str, Any]:
        """Everything so far as JSON with its samples, and forget it: a worker's report."""
        report = {"rows": {version: asdict(row) for version, row in self.rows.items()}}
        self.rows = {}
        return report

    def merge(self, report: dict[str, Any]) -> None:
        """Add what a worker drained."""
        for version, row in report["rows"].items():
            _merge(self.rows.setdefault(version, Row()), Row(**row))

    def summary(self) -> dict[str, Any]:
        """JSON of the whole run."""
        return {
            "first_s": self.first_s,
            "last_s": self.last_s,
            "total": self.everything().summary(),
            "versions": {version: row.summary() for version, row in sorted(self.rows.items())},
        }


def _merge(total: Row, row: Row) -> None:
    total.num_requests += row.num_requests
    total.num_errors += row.num_errors
    total.num_tokens += row.num_tokens
    total.busy_s += row.busy_s
    total.ttft_ms += row.ttft_ms
    total.itl_ms += row.itl_ms
