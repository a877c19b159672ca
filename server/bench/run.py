"""What every row of one run needs: the engines' setup, the base's cost, progress."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.progress import Progress

from server.bench.floors import BaseCost
from server.bench.traffic import Setup

QUICK_DIVISOR = 8


@dataclass(frozen=True)
class Run:
    """One run of the benchmark. ``is_quick`` shortens answers: for trying out, not for figures."""

    setup: Setup
    cost: BaseCost
    progress: Progress
    repeats: int = 3
    is_quick: bool = False
    streams: tuple[int, ...] = (1, 4, 8, 16)

    def num_new(self, usual: int) -> int:
        return max(usual // QUICK_DIVISOR, 4) if self.is_quick else usual

    def rounds(self, title: str, number: int) -> Iterator[int]:
        """``range(number)`` that shows how far it is."""
        task = self.progress.add_task(title, total=number)
        for turn in range(number):
            yield turn
            self.progress.advance(task)
        self.progress.remove_task(task)
