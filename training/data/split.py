"""A seeded split into train, validation and test. Knows rows by their identity only; no torch.

Rows are put in order by a hash of seed and content, so the parts are the same whatever the order of
files and rows, and rows that are added later move few of the others.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from artifacts.errors import InvalidData
from training.data.examples import Example


@dataclass(frozen=True, slots=True)
class Split:
    """Disjoint parts; ``test`` is looked at once, after training has ended."""

    train: Sequence[Example]
    validation: Sequence[Example]
    test: Sequence[Example]


@dataclass(frozen=True, slots=True)
class SplitRow:
    """What decides on a row's part: rows that share a tie stay together, and each part has every
    stratum in its share of all rows. ``identity`` is the row's content and its own alone."""

    identity: bytes
    ties: tuple[Hashable, ...] = ()
    stratum: str = ""


class Parts(NamedTuple):
    """Places of the rows in what was split, in the order of their hashes."""

    train: list[int]
    validation: list[int]
    test: list[int]


def split_rows(rows: Sequence[SplitRow], fractions: tuple[float, float, float], seed: int) -> Parts:
    """Every part with a fraction above 0 gets at least one group.

    A group that is larger than what is left of a part goes to train, so parts of grouped rows may
    be smaller than asked for. Raises InvalidData if there are fewer groups than parts.
    """
    order = sorted(range(len(rows)), key=lambda row: _key(seed, rows[row].identity))
    groups = _group(rows, order)
    wanted = [place for place, fraction in enumerate(fractions) if fraction > 0]
    if len(groups) < len(wanted):
        raise InvalidData(_too_few(len(rows), len(groups), len(wanted)))
    sizes = [0, *(_share(fraction, len(rows)) for fraction in fractions[1:])]
    parts: list[list[_Group]] = [[], [], []]
    quotas = _quotas(groups, sizes)
    for group in groups:
        left = quotas[group.stratum]
        part = next((part for part in (2, 1) if len(group.rows) <= left[part]), 0)
        left[part] -= len(group.rows)
        parts[part].append(group)
    for part in wanted:
        if not parts[part]:
            parts[part].append(_spare(parts, rows))
    rank = {row: place for place, row in enumerate(order)}
    return Parts(*(sorted((r for g in part for r in g.rows), key=rank.__getitem__)
                   for part in parts))  # fmt: skip


class _Group(NamedTuple):
    rows: list[int]
    stratum: str


def _key(seed: int, identity: bytes) -> bytes:
    return hashlib.sha256(b"%d\n%b" % (seed, identity)).digest()


def _group(rows: Sequence[SplitRow], order: Sequence[int]) -> list[_Group]:
    """Groups in the order of their first rows; each has the stratum of most of its rows."""
    first_with: dict[Hashable, int] = {}
    parent = list(range(len(rows)))  # union-find

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    for row in order:
        for tie in rows[row].ties:
            parent[root(row)] = root(first_with.setdefault(tie, row))
    found: dict[int, list[int]] = {}
    for row in order:
        found.setdefault(root(row), []).append(row)
    return [
        _Group(members, Counter(sorted(rows[row].stratum for row in members)).most_common(1)[0][0])
        for members in found.values()
    ]


def _share(fraction: float, num_rows: int) -> int:
    return max(1, int(fraction * num_rows)) if fraction > 0 else 0


def _quotas(groups: Sequence[_Group], sizes: Sequence[int]) -> dict[str, list[int]]:
    """How many rows of each stratum validation and test may take; the sums are ``sizes``.

    Largest remainders, and never a stratum's last row: what is tested must have been trained.
    """
    counts = Counter[str]()
    for group in groups:
        counts[group.stratum] += len(group.rows)
    total = sum(counts.values())
    quotas = {stratum: [0, 0, 0] for stratum in sorted(counts)}
    for part in (2, 1):  # test first
        exact = {stratum: sizes[part] * count / total for stratum, count in counts.items()}
        for stratum, quota in quotas.items():
            quota[part] = int(exact[stratum])
        by_remainder = sorted(quotas, key=lambda s: (quotas[s][part] - exact[s], s))
        missing = sizes[part] - sum(quota[part] for quota in quotas.values())
        for stratum in by_remainder:
            if missing > 0 and sum(quotas[stratum]) < counts[stratum] - 1:
                quotas[stratum][part] += 1
                missing -= 1
    return quotas


def _spare(parts: Sequence[list[_Group]], rows: Sequence[SplitRow]) -> _Group:
    """The smallest group of the part with the most groups."""
    richest = max(parts, key=len)
    spare = min(richest, key=lambda group: (len(group.rows), rows[group.rows[0]].identity))
    richest.remove(spare)
    return spare


def _too_few(num_rows: int, num_groups: int, num_parts: int) -> str:
    what = f"{num_rows} distinct usable row(s)"
    if num_groups < num_rows:
        what += f" in {num_groups} group(s) that stay together (group_by, near duplicates)"
    return (
        f"{what}, but the split needs at least {num_parts} for its {num_parts} parts; add rows or "
        "give validation_data and test_data"
    )
