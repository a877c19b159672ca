"""Examples on disk against the same examples in memory: tokens, duplicates, parts."""

from __future__ import annotations

from array import array
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artifacts.errors import InvalidData
from training.data.examples import Example, row_identity
from training.data.mixing import make_mix
from training.data.spill import Spill, SpilledExamples
from training.data.split import SplitRow, split_rows
from training.data.streamed import distinct_rows, split_streamed

token_rows = st.lists(
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=3), min_size=1, max_size=3),
    max_size=25,
)  # rows of windows of tokens


def rows_of(tokens: list[list[list[int]]]) -> list[list[Example]]:
    return [
        [Example(array("i", ids), array("i", ids), row, row % 3, row % 2) for ids in windows]
        for row, windows in enumerate(tokens)
    ]


def spilled(folder: Path, rows: list[list[Example]]) -> SpilledExamples:
    spill = Spill(folder)
    for row in rows:
        spill.append(row)
    return spill.finish()


@settings(max_examples=60, deadline=None)
@given(tokens=token_rows)
def test_a_list_on_disk_is_the_list(
    tmp_path_factory: pytest.TempPathFactory, tokens: list[list[list[int]]]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    every = [example for row in rows_of(tokens) for example in row]
    kept = spilled(folder, rows_of(tokens))
    assert list(kept) == every
    assert list(kept[1:7:2]) == every[1:7:2]
    assert kept.lengths.tolist() == [len(example.input_ids) for example in every]
    if every:
        assert kept[-1] == every[-1]
        assert list(kept.at(np.array([len(every) - 1, 0]))) == [every[-1], every[0]]
        with pytest.raises(IndexError):
            kept[len(every)]
        on_disk, in_memory = (make_mix(e, (2, 0.5, 1), "natural", 3) for e in (kept, every))
        assert on_disk is not None
        assert in_memory is not None
        assert on_disk.epoch_rows(1) == in_memory.epoch_rows(1)


@settings(max_examples=100, deadline=None)
@given(tokens=token_rows, other=token_rows, seed=st.integers(0, 99))
def test_duplicates_and_parts_are_those_of_the_way_through_memory(
    tmp_path_factory: pytest.TempPathFactory,
    tokens: list[list[list[int]]],
    other: list[list[list[int]]],
    seed: int,
) -> None:
    folder = tmp_path_factory.getbasetemp()
    theirs = {row_identity(row) for row in rows_of(other)}
    first: dict[bytes, list[Example]] = {}
    for row in rows_of(tokens):
        if row_identity(row) not in theirs:
            first.setdefault(row_identity(row), row)
    distinct = distinct_rows(spilled(folder, rows_of(tokens)), [spilled(folder, rows_of(other))])
    assert list(distinct) == [example for row in first.values() for example in row]
    fractions = (0.6, 0.2, 0.2)
    rows = list(first.values())
    if len(rows) < 3:
        with pytest.raises(InvalidData, match="at least 3"):
            split_streamed(distinct, fractions, seed)
        return
    parts = split_rows([SplitRow(identity) for identity in first], fractions, seed)
    expected = [[example for place in part for example in rows[place]] for part in parts]
    assert [list(part) for part in split_streamed(distinct, fractions, seed)] == expected


def test_the_files_have_no_name_and_a_slice_outlives_its_list(tmp_path: Path) -> None:
    last = spilled(tmp_path, rows_of([[[1]], [[2, 3]]]))[1:]
    assert not list(tmp_path.iterdir())
    assert list(last[0].input_ids) == [2, 3]
