"""A row as it stands in a file, and a row that cannot be used. Knows no format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from artifacts.errors import InvalidData

# A longer row is refused: it would have to be held whole, and no base could see it.
MAX_ROW_CHARS = 64 << 20


class BadRow(NamedTuple):
    """A row that cannot be used; ``line`` counts from 1."""

    file: str
    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class Row:
    """One value of a file, and its place counted from 1: a physical line, in Parquet and on the
    hub the number of the row."""

    file: str
    line: int
    value: Any


def broken_file(file: str, line: int, reason: str) -> InvalidData:
    """What is raised where a file cannot be read past ``line``."""
    return InvalidData(f"{file}:{line}: {reason}", [BadRow(file, line, reason)])
