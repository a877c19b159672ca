"""Which rows one call of an exported model computes, and the cache in which they lie."""

from __future__ import annotations

from typing import NoReturn, cast

import pytest
import torch

from artifacts.exported.graph import GraphShape
from server.engine.graph_cache import GraphCache
from server.engine.graph_plan import plan_calls
from server.engine.scheduler import Chunk
from server.engine.sequence import Sequence
from tests.server.engine.graph import HashModel


def test_a_cache_that_could_not_grow_has_lost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory runs out between the keys' tensor and the values'; later there is enough."""
    shape = HashModel.shape
    cache = GraphCache(shape, 8, 4096)
    cache.fit(8, [8])
    for tensor in cache.rows(range(1)):
        tensor[0, 0, :8, 0] = torch.arange(8.0)
    left = [shape.new_tensor(8, 1024)]
    monkeypatch.setattr(GraphShape, "new_tensor", lambda *_: left.pop() if left else no_memory())
    with pytest.raises(MemoryError):
        cache.fit(1000, [8, 0, 0, 0, 0])
    monkeypatch.undo()
    cache.fit(8, [8])
    assert {tuple(tensor.shape) for tensor in cache._tensors} == {
        (cache.num_rows, 1, cache.num_places, 1)
    }
    for tensor in cache.rows(range(1)):
        assert tensor[0, 0, :8, 0].tolist() == list(range(8))


def no_memory() -> NoReturn:
    raise MemoryError


def test_calls_join_neighbours_where_the_padding_is_cheaper_than_a_call() -> None:
    def rows(*chunks: tuple[int, int], places: int = 1000, shunned: tuple[int, ...] = ()) -> object:
        """(row, tokens) each → the rows and the length of each call."""
        made = [Chunk(cast("Sequence", f"s{row}"), 0, num) for row, num in chunks]
        row_of = {chunk.seq: row for chunk, (row, _) in zip(made, chunks, strict=True)}
        calls = plan_calls(made, row_of, places, shunned)
        return [(call.rows, call.length) for call in calls]

    assert rows((0, 1), (4, 1), (2, 1)) == [((0, 2, 4), 1)]
    assert rows((0, 1), (4, 1), (2, 1), shunned=(3,)) == [((0, 2), 1), ((4,), 1)]
    assert rows((1, 40), (0, 30)) == [((0, 1), 40)]
    assert rows((0, 10), (2, 10)) == [((0,), 10), ((2,), 10)], "prompts leave no row out"
    assert rows((1, 1), (0, 30)) == [((1,), 1), ((0,), 30)], "rows ascend in a call"
    assert rows((0, 30), (1, 400)) == [((0,), 30), ((1,), 400)]
    assert rows((0, 30), (1, 40), places=39) == [((0,), 30), ((1,), 40)]
    assert rows((0, 1), (1, 1), (2, 300)) == [((0, 1), 1), ((2,), 300)]
