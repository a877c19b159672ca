"""What rows are made of: languages, lengths, classes. Plain counts, no opinions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from training.doctor.personal import redact

# Chinese characters, and the scripts that others are told by.
_HAN = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_KANA = re.compile("[\u3040-\u30ff]")
_LATIN_WORD = re.compile("[A-Za-zÀ-ɏ]+")
_OTHER_WORD = re.compile(r"[^\W\d_A-Za-zÀ-ɏ\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+")

LANGUAGES = ("zh", "en", "mixed", "other")
_PURE = 0.8  # share of the words from which a text is of one language

_MAX_CLASSES = 500
_MAX_LABEL_CHARS = 60
_MIN_ROWS_PER_CLASS = 5  # on average: fewer, and the replies are merely short


def language_of(text: str) -> str:
    """By script: ``zh`` Chinese characters, ``en`` Latin letters, ``mixed`` of the two, else
    ``other``. Two Chinese characters weigh as much as a word."""
    chinese, latin = len(_HAN.findall(text)) / 2, len(_LATIN_WORD.findall(text))
    kana, other = len(_KANA.findall(text)), len(_OTHER_WORD.findall(text))
    known = chinese + latin
    if not known or kana > chinese / 5 or other > known:
        return "other"
    if chinese >= _PURE * known:
        return "zh"
    return "en" if latin >= _PURE * known else "mixed"


def length_figures(lengths: Sequence[int]) -> dict[str, Any]:
    """Of rows in tokens, before any cut: extremes, percentiles and counts by powers of two."""
    if not lengths:
        return {"total": 0, "histogram": []}
    ordered = sorted(lengths)
    at = {p: ordered[min(len(ordered) - 1, len(ordered) * p // 100)] for p in (50, 90, 99)}
    counts = Counter(max(0, length - 1).bit_length() for length in ordered)
    return {
        "total": sum(ordered),
        "min": ordered[0],
        "median": at[50],
        "p90": at[90],
        "p99": at[99],
        "max": ordered[-1],
        # [more than, at most, rows]
        "histogram": [
            [2**power // 2 if power else 0, 2**power, counts[power]]
            for power in range(min(counts), max(counts) + 1)
        ],
    }


def class_figures(labels: Sequence[str], *, is_given: bool) -> dict[str, Any] | None:
    """How often each label stands. None if these are no labels: too many, too long, too rare.

    ``is_given``: a column was named, so they are labels in any case.
    """
    counts = Counter(label.strip() for label in labels)
    is_classes = (
        1 < len(counts) <= min(_MAX_CLASSES, len(labels) / _MIN_ROWS_PER_CLASS)
        and max(map(len, counts)) <= _MAX_LABEL_CHARS
    )
    if not counts or not (is_given or is_classes):
        return None
    ranked = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return {
        "num_classes": len(ranked),
        "largest": ranked[0][1],
        "smallest": ranked[-1][1],
        "rows": {redact(label): count for label, count in ranked[:20]},
    }
