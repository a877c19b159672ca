"""The doctor's findings as plain values: what a program reads, what a run keeps.

Counts and places, never the personal data that was found: a report is kept and sent.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from training.data.rows import BadRow
from training.doctor.personal import redact

NUM_LISTED = 20
_MAX_SHOWN_CHARS = 160
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True, slots=True)
class Findings:
    """What was found in one set of rows. Places are ``file:line``."""

    files: list[dict[str, Any]]  # name, encoding, SHA-256 and rows of each source
    notes: list[str]
    num_rows: int
    num_bad: int
    bad_rules: dict[str, int]  # reason → rows, most frequent first
    bad_rows: list[dict[str, Any]]  # the first ones: file, line, reason
    num_too_long: int  # left out: no reply within max_length
    num_masked: int  # bad: not one token to learn
    num_truncated: int
    num_windowed: int  # rows that became several examples
    num_undesirable: int  # left out: KTO rows that say how not to answer
    num_duplicates: int  # exact ones, removed
    num_usable: int  # what is left of all rows
    tokens: dict[str, Any]
    languages: dict[str, int]
    classes: dict[str, Any] | None
    personal_data: dict[str, Any]  # rows, kinds → pieces, places
    cleaning: dict[str, dict[str, Any]]  # rule → rows and an example


@dataclass(frozen=True, slots=True)
class Report:
    """The findings in the training rows, and what they have to do with other rows."""

    data: Findings
    settings: dict[str, Any]  # the keys of the configuration that decide what is looked for
    near_duplicates: dict[str, Any]  # mode, threshold, rows, places of pairs
    overlap: dict[str, dict[str, Any]]  # other set → exact and near rows, places of pairs
    others: dict[str, Findings] = field(default_factory=dict)  # validation, test
    parts: dict[str, int] = field(default_factory=dict)  # rows; empty if they cannot be split
    problem: str | None = None  # why this cannot be trained

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def totals(self) -> dict[str, Any]:
        """The report in a few numbers: for an event, a manifest, a line."""
        data = self.data
        return {
            "num_rows": data.num_rows,
            "num_bad": data.num_bad,
            "num_too_long": data.num_too_long,
            "num_truncated": data.num_truncated,
            "num_duplicates": data.num_duplicates,
            "num_near_duplicates": self.near_duplicates["rows"],
            "num_overlapping": sum(o["exact"] + o["near"] for o in self.overlap.values()),
            "num_with_personal_data": data.personal_data["rows"],
            "num_cleaned": data.cleaning.get("any", {}).get("rows", 0),
            "num_tokens": data.tokens["total"],
            "languages": {name: count for name, count in data.languages.items() if count},
            "parts": self.parts,
        }


def bad_figures(bad: Sequence[BadRow]) -> dict[str, Any]:
    """Totals per reason, whose numbers are left out, and the first rows in full."""
    rules = Counter(_NUMBER.sub("#", _shorten(row.reason)) for row in bad)
    return {
        "num_bad": len(bad),
        "bad_rules": dict(rules.most_common(NUM_LISTED)),
        "bad_rows": [row._asdict() for row in bad[:NUM_LISTED]],
    }


def pair_places(pairs: Iterable[tuple[str, str]], num_listed: int = 5) -> list[dict[str, str]]:
    """A few of (place, place that it is like)."""
    listed = [{"row": row, "like": like} for row, like in pairs]
    return listed[:num_listed]


def example_of(before: str, after: str) -> dict[str, str]:
    """Where the two texts begin to differ, with a little around it; personal data is left out."""
    before, after = redact(before), redact(after)
    same = next((i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a != b), 0)
    start = max(0, same - 20)
    return {"before": _shorten(before[start:]), "after": _shorten(after[start:])}


def _shorten(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN_CHARS else text[: _MAX_SHOWN_CHARS - 1] + "…"
