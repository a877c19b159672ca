"""Exact duplicates out, then a seeded split. Knows only examples; no torch.

Duplicates go before the split: the same row in train and test would make the gate praise memory.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

from artifacts.errors import InvalidData
from training.data.examples import Example, example_hash


@dataclass(frozen=True, slots=True)
class Split:
    """Disjoint parts; ``test`` is looked at once, after training has ended."""

    train: list[Example]
    validation: list[Example]
    test: list[Example]


def drop_duplicates(examples: Sequence[Example]) -> tuple[list[Example], str]:
    """The first of each group of equal rows in their order, and the SHA-256 of that list."""
    distinct: dict[bytes, Example] = {}
    for example in examples:
        distinct.setdefault(example_hash(example), example)
    return list(distinct.values()), hashlib.sha256(b"".join(distinct)).hexdigest()


def split_examples(
    examples: Sequence[Example], fractions: tuple[float, float, float], seed: int
) -> Split:
    """Shuffles by ``seed`` and cuts; every part with a fraction above 0 gets at least one row.

    Raises InvalidData if there are fewer rows than parts.
    """
    num_parts = sum(fraction > 0 for fraction in fractions)
    if len(examples) < num_parts:
        raise InvalidData(
            f"{len(examples)} distinct usable row(s), but train, validation and test need at least "
            f"{num_parts}; add rows"
        )
    order = list(examples)
    random.Random(seed).shuffle(order)
    num_validation, num_test = (_share(fraction, len(order)) for fraction in fractions[1:])
    num_train = len(order) - num_validation - num_test
    return Split(
        train=order[:num_train],
        validation=order[num_train : num_train + num_validation],
        test=order[num_train + num_validation :],
    )


def _share(fraction: float, num_rows: int) -> int:
    return max(1, int(fraction * num_rows)) if fraction > 0 else 0
