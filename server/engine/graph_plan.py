"""Which row of an exported model's cache each sequence has, and which calls make up one step.

A call computes neighbouring rows. So the rows in use are kept together: they are always the first
ones, and where a sequence has gone the last row moves into its place. No tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from collections.abc import Sequence as Rows
from dataclasses import dataclass

from server.engine.scheduler import Chunk
from server.engine.sequence import Sequence

CALL_TOKENS = 24  # what one more call costs beside its tokens: all weights are read once more


class RowTable:
    """The sequences of the rows, in their order.

    A sequence that holds no KV blocks any more has ended or was sent back: its row is free.
    """

    def __init__(self, move: Callable[[int, int, int], None]) -> None:
        self._move = move  # (from row, to row, number of places)
        self.owners: list[Sequence] = []

    def seat(self, chunks: Iterable[Chunk]) -> dict[Sequence, int]:
        """Free what is no longer held, close the gaps, give newcomers the next rows."""
        owners = self.owners
        row = 0
        while row < len(owners):
            if owners[row].block_table:
                row += 1
                continue
            last = owners.pop()
            if row < len(owners):
                if last.block_table:
                    self._move(len(owners), row, last.num_computed)
                owners[row] = last
        row_of = {seq: row for row, seq in enumerate(owners)}
        for chunk in chunks:
            if chunk.seq not in row_of:
                row_of[chunk.seq] = len(owners)
                owners.append(chunk.seq)
        return row_of


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the model: ``chunks[i]`` is computed in row ``rows[i]``, ascending.

    It takes the whole range of rows with ``length`` tokens each: shorter chunks are padded on the
    right, and rows in between without a chunk only fill the range; then ``length`` is 1.
    """

    rows: tuple[int, ...]
    chunks: tuple[Chunk, ...]
    length: int

    @property
    def range(self) -> range:
        return range(self.rows[0], self.rows[-1] + 1)

    @property
    def num_tokens(self) -> int:
        return len(self.range) * self.length

    @property
    def is_filled(self) -> bool:
        """Whether it has rows without a chunk."""
        return len(self.rows) < len(self.range)

    @property
    def end(self) -> int:
        """Behind the last place that it writes to, padding included."""
        return max(chunk.start for chunk in self.chunks) + self.length


def plan_calls(
    chunks: Rows[Chunk],
    row_of: dict[Sequence, int],
    num_places: int,
    shunned: Container[int] = (),
) -> list[Call]:
    """The calls for chunks of one adapter.

    Single tokens go together, over the whole range of their rows unless one of ``shunned`` would
    fill it; prompts share a call with their neighbours where the padding costs less than a call.
    No padding is written past ``num_places``.
    """
    calls: list[Call] = []
    for chunk in sorted(chunks, key=lambda chunk: (not chunk.is_decode, row_of[chunk.seq])):
        call = Call((row_of[chunk.seq],), (chunk,), chunk.num_tokens)
        joined = _joined(calls[-1], call, num_places, shunned) if calls else None
        if joined is None:
            calls.append(call)
        else:
            calls[-1] = joined
    return calls


def _joined(one: Call, two: Call, num_places: int, shunned: Container[int]) -> Call | None:
    """Both in one call, None where that cannot be or does not pay."""
    between = range(one.range.stop, two.range.start)
    joined = Call(one.rows + two.rows, one.chunks + two.chunks, max(one.length, two.length))
    if one.range.stop > two.range.start:
        return None
    if joined.length == 1:
        return None if any(row in shunned for row in between) else joined
    pays = joined.num_tokens <= one.num_tokens + two.num_tokens + CALL_TOKENS
    return joined if pays and not joined.is_filled and joined.end <= num_places else None
