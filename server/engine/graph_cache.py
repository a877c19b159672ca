"""Keys and values of all sequences as an exported model wants them: one row for each sequence.

All rows have the same number of places, because one call computes several of them. So it grows as
the longest sequence does, to twice its places at a time, and shrinks again when all are short.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Rows

import torch
from torch import Tensor

from artifacts.exported.graph import GraphShape

FIRST_ROWS = 4
FIRST_PLACES = 256
SHRINK_AFTER = 64  # steps in which a quarter of it would have been enough


class GraphCache:
    """At first nothing; at most ``max_rows`` of ``max_tokens``.

    The last place of a row belongs to no token: rows that only fill a range write there.
    """

    def __init__(self, shape: GraphShape, max_rows: int, max_tokens: int) -> None:
        self._shape = shape
        self._max_rows = max_rows
        self._max_places = max_tokens + 1
        self._tensors: list[Tensor] = []
        self._num_idle = 0
        self.num_rows = 0
        self.num_places = 0
        self.seen = torch.empty(0, dtype=torch.int64)  # [num_rows, num_places] of ones

    @property
    def spare_place(self) -> int:
        return self.num_places - 1

    def fit(self, num_tokens: int, lengths: Rows[int]) -> None:
        """Make room for rows of ``num_tokens``; the first ``lengths[row]`` places are kept.

        Where memory runs out on the way nothing is lost, and the next call tries again.
        """
        rows = min(_doubled(FIRST_ROWS, len(lengths)), self._max_rows)
        places = min(_doubled(FIRST_PLACES, num_tokens + 1), self._max_places)
        if rows > self.num_rows or places > self.num_places:
            self._resize(max(rows, self.num_rows), places, lengths)
        elif 4 * rows * places <= self.num_rows * self.num_places:
            self._num_idle += 1
            if self._num_idle > SHRINK_AFTER:
                self._resize(rows, places, lengths)
        else:
            self._num_idle = 0

    def rows(self, rows: range) -> list[Tensor]:
        return [tensor[rows.start : rows.stop] for tensor in self._tensors]

    def move(self, source: int, target: int, num_places: int) -> None:
        for tensor in self._tensors:
            tensor[target, :, :num_places] = tensor[source, :, :num_places]

    def clear(self, rows: Iterable[int]) -> None:
        for row in rows:
            for tensor in self._tensors:
                tensor[row].zero_()

    def clear_spare(self, rows: range) -> None:
        """What stood there for a moment may have been NaN, which no mask would hide."""
        for tensor in self._tensors:
            tensor[rows.start : rows.stop, :, self.spare_place].zero_()

    def _resize(self, num_rows: int, num_places: int, lengths: Rows[int]) -> None:
        self.num_rows = self.num_places = self._num_idle = 0  # half done: to be done again
        if not self._tensors:
            self._tensors = self._shape.new_cache(num_rows, num_places)
        for i, old in enumerate(self._tensors):
            if old.shape[0] == num_rows and old.shape[2] == num_places:
                continue
            new = self._shape.new_tensor(num_rows, num_places)
            for row, length in enumerate(lengths[: old.shape[0]]):
                new[row, :, :length] = old[row, :, :length]
            self._tensors[i] = new
        self.seen = torch.ones((num_rows, num_places), dtype=torch.int64)
        self.num_rows, self.num_places = num_rows, num_places


def _doubled(first: int, wanted: int) -> int:
    while first < wanted:
        first *= 2
    return first
