"""Windows over a long row: every target trained once, whatever the lengths."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artifacts.errors import InvalidInput
from training.data.windows import IGNORED, check_overlap, cut_windows


@settings(max_examples=400, deadline=None)
@given(
    learned=st.lists(st.booleans(), min_size=1, max_size=80),
    max_length=st.integers(2, 30),
    data=st.data(),
)
def test_no_token_is_trained_twice_and_none_is_lost(
    learned: list[bool], max_length: int, data: st.DataObject
) -> None:
    overlap = data.draw(st.integers(1, max_length - 1))
    ids = list(
        range(len(learned))
    )  # a token's id is its place, so that windows show what they hold
    labels = [i if on else IGNORED for i, on in zip(ids, learned, strict=True)]
    trained: list[int] = []
    for window_ids, window_labels in cut_windows(ids, labels, max_length, overlap):
        assert len(window_ids) == len(window_labels) <= max_length
        assert list(window_ids) == list(range(window_ids[0], window_ids[0] + len(window_ids)))
        for place, label in enumerate(window_labels):
            if label != IGNORED and place > 0:  # nothing predicts the first token of a window
                assert label == window_ids[place]
                assert place >= min(overlap, label)  # with at least this much before it
                trained.append(label)
    assert trained == [i for i in ids[1:] if learned[i]]


def test_a_short_row_is_one_window_and_a_window_without_target_is_none() -> None:
    assert len(cut_windows([1, 2], [1, 2], 4, 1)) == 1
    prompt_first = cut_windows(list(range(8)), [IGNORED] * 7 + [7], 4, 1)
    assert [list(ids) for ids, _ in prompt_first] == [[6, 7]]


@pytest.mark.parametrize("overlap", [0, 8, 9])
def test_an_overlap_that_loses_or_never_ends_is_refused(overlap: int) -> None:
    with pytest.raises(InvalidInput, match=f"window_overlap={overlap} must be at least 1"):
        check_overlap(overlap, 8)
