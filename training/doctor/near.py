"""Near duplicates: rows that share most of their 5-grams. Knows texts only.

A 5-gram is five words in a row; a Chinese or Japanese character counts as a word. MinHash with
locality-sensitive hashing (datasketch) proposes pairs, and each is checked by its exact Jaccard
similarity. Work is bounded: a row is compared with rows that the index proposes, and of rows alike
only those that stay and ``_MAX_INDEXED`` others are in the index: 50,000 copies of one row cost as
much as 50,000 different rows.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Shingles = NDArray[np.uint64]  # sorted and distinct

SHINGLE_WORDS = 5
_NUM_PERMUTATIONS = 128
_MAX_INDEXED = 32
_MISSED = 1e-3  # chance that a pair just at the threshold is not proposed
_MIN_ROWS_OF_TEMPLATE = 100
_UPDATE_ROWS = 8192  # 5-grams hashed at once: bounds the memory of one long row

_IDEOGRAPHS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_IDEOGRAPHS}]|[^\W_{_IDEOGRAPHS}]+")


@dataclass(frozen=True, slots=True)
class RowText:
    """What counts of a row: ``prompt`` without its system message, and ``reply``."""

    prompt: str
    reply: str


@dataclass(frozen=True, slots=True)
class Likeness:
    """``original[i]`` is the row that stays for row i, None if i itself stays; ``cluster[i]`` is
    equal for rows that are joined by a chain of near duplicates."""

    original: list[int | None]
    cluster: list[int]

    @property
    def num_duplicates(self) -> int:
        return sum(row is not None for row in self.original)


def find_near_duplicates(rows: Sequence[RowText], threshold: float, num_fixed: int = 0) -> Likeness:
    """Rows are alike if the Jaccard similarity of their 5-grams is at least ``threshold`` and that
    of their replies at least half of it: other questions about one passage are no duplicates.

    What more than half of all rows share is a template's and does not count. Of rows alike the
    first stays; a row that goes is always like one that stays. The first ``num_fixed`` rows stay,
    whatever they are like.
    """
    from datasketch import MinHashLSH

    whole = [shingles(f"{row.prompt}\n{row.reply}") for row in rows]
    whole = _without_template(whole)
    replies = [shingles(row.reply) for row in rows]
    num_bands, band_size = _bands(threshold)
    index = MinHashLSH(num_perm=_NUM_PERMUTATIONS, params=(num_bands, band_size))
    found = _Clusters(len(rows), num_fixed)
    for row, grams in enumerate(whole):
        sketch = _sketch(grams)
        alike = [
            other
            for other in sorted(index.query(sketch))
            if jaccard(grams, whole[other]) >= threshold
            and jaccard(replies[row], replies[other]) >= threshold / 2
        ]
        if found.add(row, alike):
            index.insert(row, sketch, check_duplication=False)
    return Likeness(found.original, [found.root(row) for row in range(len(rows))])


class _Clusters:
    """Who stays, and who belongs together (union-find)."""

    def __init__(self, num_rows: int, num_fixed: int) -> None:
        self._num_fixed = num_fixed
        self.original: list[int | None] = [None] * num_rows
        self._parent = list(range(num_rows))
        self._num_indexed = Counter[int]()

    def root(self, row: int) -> int:
        while self._parent[row] != row:
            self._parent[row] = self._parent[self._parent[row]]
            row = self._parent[row]
        return row

    def add(self, row: int, alike: Iterable[int]) -> bool:
        """Whether the row belongs into the index."""
        for other in alike:
            if self._stays(row) and self._stays(other) and row >= self._num_fixed:
                self.original[row] = other
            self._join(self.root(other), self.root(row))
        root = self.root(row)
        self._num_indexed[root] += 1
        return self._stays(row) or self._num_indexed[root] <= _MAX_INDEXED

    def _stays(self, row: int) -> bool:
        return self.original[row] is None

    def _join(self, one: int, other: int) -> None:
        if one != other:
            first, second = sorted((one, other))
            self._parent[second] = first
            self._num_indexed[first] += self._num_indexed[second]


def shingles(text: str) -> Shingles:
    """Hashes of all 5-grams of the text, case and punctuation left out; never empty.

    A text of fewer words is one gram.
    """
    import numpy as np

    words = _WORD.findall(text.lower())
    if len(words) < SHINGLE_WORDS:
        only = " ".join(words) or text.strip()
        return np.array([_word_number(only)], dtype=np.uint64)
    numbers = np.fromiter(map(_word_number, words), dtype=np.uint64, count=len(words))
    count = len(words) - SHINGLE_WORDS + 1
    hashes = np.zeros(count, dtype=np.uint64)
    for place in range(SHINGLE_WORDS):  # a polynomial modulo 2^64, which numpy wraps to
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + numbers[place : place + count]
    return np.unique(hashes)


def jaccard(one: Shingles, other: Shingles) -> float:
    """Shared grams over all grams."""
    import numpy as np

    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / (len(one) + len(other) - shared)


@lru_cache(maxsize=1 << 18)
def _word_number(word: str) -> int:
    """The same in every process, unlike ``hash``."""
    digest = hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _without_template(rows: list[Shingles]) -> list[Shingles]:
    """Rows without the grams of more than half of them; one with no other keeps its own."""
    import numpy as np

    if len(rows) < _MIN_ROWS_OF_TEMPLATE:
        return rows
    grams, counts = np.unique(np.concatenate(rows), return_counts=True)
    template = grams[counts > len(rows) / 2]
    if not len(template):
        return rows
    rest = (np.setdiff1d(row, template, assume_unique=True) for row in rows)
    return [left if len(left) else row for left, row in zip(rest, rows, strict=True)]


def _bands(threshold: float) -> tuple[int, int]:
    """(bands, rows per band): the largest band with which a pair at the threshold is proposed."""
    for size in range(16, 0, -1):
        num_bands = _NUM_PERMUTATIONS // size
        if num_bands >= 2 and (1 - threshold**size) ** num_bands <= _MISSED:
            return num_bands, size
    return _NUM_PERMUTATIONS, 1


def _sketch(grams: Shingles) -> Any:
    from datasketch import MinHash

    sketch = MinHash(
        num_perm=_NUM_PERMUTATIONS,
        hashfunc=int,
        permutations=_permutations(),
        scheme="affine32",
    )
    folded = (grams >> grams.dtype.type(32)).tolist()
    for start in range(0, len(folded), _UPDATE_ROWS):
        sketch.update_batch(folded[start : start + _UPDATE_ROWS])
    return sketch


@lru_cache(maxsize=1)
def _permutations() -> Any:
    from datasketch import MinHash

    return MinHash(num_perm=_NUM_PERMUTATIONS, scheme="affine32").permutations
