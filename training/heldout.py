"""Keeps rows of the test part for whoever compares the adapter later, an export above all."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import islice

from artifacts.errors import StorageError
from artifacts.heldout import MAX_ROWS, MAX_TOKENS, HeldOutRow, write_heldout
from artifacts.home import Home
from training.data.examples import IGNORED, Example

log = logging.getLogger("loraloop.training")


def keep_heldout(home: Home, content_hash: str, test: Sequence[Example]) -> None:
    """Writes the first of them. That they cannot be kept is logged: the version is published."""
    rows = [heldout_row(example) for example in islice(test, MAX_ROWS)]
    try:
        write_heldout(home, content_hash, rows)
    except (StorageError, OSError) as error:
        log.warning("the test rows for later comparisons could not be kept: %s", error)


def heldout_row(example: Example) -> HeldOutRow:
    """The row up to its last reply's end; of a plain text, the second half is the reply."""
    learned = [label != IGNORED for label in example.labels]
    end = len(learned) - learned[::-1].index(True)
    start = end
    while start > 0 and learned[start - 1]:
        start -= 1
    if start == 0:
        start = max(1, end // 2)
    cut = max(0, min(end - MAX_TOKENS, start - 1))  # of the prompt's beginning
    ids = tuple(int(id_) for id_ in example.input_ids[cut : min(end, cut + MAX_TOKENS)])
    return HeldOutRow(ids, start - cut)
