"""Duplicates and parts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifacts.errors import InvalidData
from training.data.examples import Example, example_hash
from training.data.split import drop_duplicates, split_examples

rows = st.lists(st.lists(st.integers(0, 3), min_size=2, max_size=4), min_size=3, max_size=40)


def examples(ids: list[list[int]]) -> list[Example]:
    return [Example(row, row) for row in ids]


@given(ids=rows, seed=st.integers(0, 5))
def test_no_row_is_in_two_parts_or_lost(ids: list[list[int]], seed: int) -> None:
    distinct, _ = drop_duplicates(examples(ids))
    assert len(distinct) == len({tuple(row) for row in ids})
    if len(distinct) < 3:
        with pytest.raises(InvalidData, match="add rows"):
            split_examples(distinct, (0.8, 0.1, 0.1), seed)
        return
    parts = split_examples(distinct, (0.8, 0.1, 0.1), seed)
    assert parts == split_examples(distinct, (0.8, 0.1, 0.1), seed)
    hashes = [example_hash(e) for part in (parts.train, parts.validation, parts.test) for e in part]
    assert len(hashes) == len(set(hashes)) == len(distinct)
    assert parts.train
    assert parts.validation
    assert parts.test


def test_the_parts_have_the_sizes_asked_for_and_depend_on_the_seed() -> None:
    many, _ = drop_duplicates(examples([[i, i] for i in range(200)]))
    split = split_examples(many, (0.8, 0.1, 0.1), 0)
    assert [len(part) for part in (split.train, split.validation, split.test)] == [160, 20, 20]
    assert split.test != split_examples(many, (0.8, 0.1, 0.1), 1).test
    assert split_examples(many, (0.5, 0.0, 0.5), 0).validation == []


def test_the_data_hash_sees_order_labels_and_content() -> None:
    a, b = Example([1, 2], [-100, 2]), Example([1, 2], [1, 2])
    hashes = {drop_duplicates(rows)[1] for rows in ([a], [b], [a, b], [b, a])}
    assert len(hashes) == 4
    assert drop_duplicates([a, b, a])[1] == drop_duplicates([a, b])[1]
