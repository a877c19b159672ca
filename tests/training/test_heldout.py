"""Which part of a row is asked and which is the answer; a full disk costs no version."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from artifacts.heldout import HeldOutRow, read_heldout
from artifacts.home import Home
from training.data.examples import IGNORED, Example
from training.heldout import heldout_row, keep_heldout

HASH = "c" * 64


def example(*parts: tuple[int, bool]) -> Example:
    """Tokens counted from 0, in stretches that are learned or not."""
    learned = [is_learned for count, is_learned in parts for _ in range(count)]
    labels = [i if is_learned else IGNORED for i, is_learned in enumerate(learned)]
    return Example(range(len(labels)), labels)


@pytest.mark.parametrize(
    ("row", "first", "last", "num_prompt"),
    [
        (example((4, False), (3, True)), 0, 6, 4),
        (example((2, False), (2, True), (3, False), (2, True), (1, False)), 0, 8, 7),
        (example((1, False), (1, True)), 0, 1, 1),
        (example((9, True)), 0, 8, 4),  # plain text
        (example((600, False), (10, True)), 98, 609, 502),  # the prompt's beginning goes
        (example((600, False), (700, True)), 599, 1110, 1),  # and then the reply's end
        (example((2000, True)), 999, 1510, 1),
    ],
)
def test_the_last_reply_is_the_answer(row: Example, first: int, last: int, num_prompt: int) -> None:
    assert heldout_row(row) == HeldOutRow(tuple(range(first, last + 1)), num_prompt)


def test_rows_that_cannot_be_kept_are_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    home = Home.open(tmp_path)
    rows = [example((2, False), (2, True))]
    home.heldout.write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        keep_heldout(home, HASH, rows)
    assert "could not be kept" in caplog.text
    home.heldout.unlink()
    keep_heldout(home, HASH, rows)
    assert read_heldout(home, HASH) == [HeldOutRow((0, 1, 2, 3), 2)]
