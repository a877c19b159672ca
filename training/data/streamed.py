"""``streaming: true``: duplicates and split of rows that lie on disk, by their numbers alone.

Gives the parts that the way through memory gives. Near duplicates are not looked for: that needs
the text of all rows at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from artifacts.errors import InvalidData
from training.data.spill import SpilledExamples


def distinct_rows(
    examples: SpilledExamples, others: Sequence[SpilledExamples] = ()
) -> SpilledExamples:
    """The first of each group of equal rows, in order, without those that stand in ``others``.

    Told by 64 bits of their hash: among a million rows, two different ones are taken for equal with
    a probability of 3e-8.
    """
    rows, first = np.unique(examples.rows, return_index=True)  # the first example of each row
    hashes = examples.hashes[first]
    _, places = np.unique(hashes, return_index=True)
    kept = np.zeros(len(rows), bool)
    kept[places] = True
    for other in others:
        kept &= ~np.isin(hashes, other.hashes)
    return examples.at(kept[np.searchsorted(rows, examples.rows)])


def split_streamed(
    examples: SpilledExamples, fractions: tuple[float, float, float], seed: int
) -> tuple[SpilledExamples, SpilledExamples, SpilledExamples]:
    """Train, validation and test as ``training.data.split`` cuts them; a row's windows stay
    together. Raises InvalidData if there are fewer rows than parts.
    """
    _, first, row_of = np.unique(examples.rows, return_index=True, return_inverse=True)
    num_rows, num_parts = len(first), sum(fraction > 0 for fraction in fractions)
    if num_rows < num_parts:
        raise InvalidData(
            f"{num_rows} distinct usable row(s), but the split needs at least {num_parts} for its "
            f"{num_parts} parts; add rows or give validation_data and test_data"
        )
    order = np.argsort(_keys(examples.identities[first], seed), kind="stable")
    sizes = [_share(fraction, num_rows) for fraction in fractions]
    num_test = min(sizes[2], num_rows - 1)
    num_validation = min(sizes[1], num_rows - 1 - num_test)
    rank = np.empty(num_rows, np.int64)
    rank[order] = np.arange(num_rows)
    cuts = (num_test, num_test + num_validation, num_rows)
    by_rank = np.argsort(rank[row_of], kind="stable")  # a row's windows in their order
    ends = np.searchsorted(rank[row_of][by_rank], cuts)
    test, validation, train = np.split(by_rank, ends[:2])
    return examples.at(train), examples.at(validation), examples.at(test)


def _keys(identities: NDArray[np.void], seed: int) -> NDArray[np.uint64]:
    """The first 64 bits of the keys by which rows in memory are ordered."""
    start = b"%d\n" % seed
    keys = (
        int.from_bytes(hashlib.sha256(start + identity.tobytes()).digest()[:8])
        for identity in identities
    )
    return np.fromiter(keys, np.uint64, len(identities))


def _share(fraction: float, num_rows: int) -> int:
    return max(1, int(fraction * num_rows)) if fraction > 0 else 0
