"""JSON and JSON Lines files to rows that know their line. Knows no format of the rows.

``str.splitlines`` is not used: it also splits at U+2028 and friends, which JSON strings may hold.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from artifacts.errors import InvalidData

_BOM = b"\xef\xbb\xbf"
_SPACE = re.compile(r"[ \t\r\n]*")


class BadRow(NamedTuple):
    """A row that cannot be used; ``line`` counts from 1."""

    file: str
    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class Row:
    """One parsed value and the line on which it starts, counted from 1."""

    file: str
    line: int
    value: Any


def read_rows(path: Path) -> tuple[list[Row], list[BadRow]]:
    """All rows of one file, and the lines of a JSON Lines file that are not JSON.

    Raises InvalidData for what cannot be read past: no file, not UTF-8, empty, a broken JSON array.
    """
    text = _read_text(path)
    start = _skip_space(text, 0)
    if start == len(text):
        raise InvalidData(f"{path} is empty; expected a JSON array or JSON Lines")
    if text[start] == "[":
        rows = [Row(str(path), line, value) for line, value in _scan_array(str(path), text, start)]
        if not rows:
            raise InvalidData(f"{path} holds an empty array; nothing to train on")
        return rows, []
    _refuse_single_object(path, text, start)
    return _read_lines(str(path), text)


def _read_text(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InvalidData(f"cannot read the data file {path}: {error.strerror}") from error
    skipped = len(_BOM) if raw.startswith(_BOM) else 0
    try:
        return raw[skipped:].decode("utf-8")
    except UnicodeDecodeError as error:
        offset = skipped + error.start
        line = raw.count(b"\n", 0, offset) + 1
        reason = f"not UTF-8 at byte offset {offset}{_guess_encoding(raw)}"
        message = f"{path}:{line}: {reason}; convert the file to UTF-8"
        raise InvalidData(message, [BadRow(str(path), line, reason)]) from error


def _guess_encoding(raw: bytes) -> str:
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return " (it starts like UTF-16)"
    try:
        raw.decode("gb18030")
    except UnicodeDecodeError:
        return ""
    return " (it reads as GBK/GB18030)"


def _skip_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position


def _scan_array(file: str, text: str, position: int) -> Iterator[tuple[int, Any]]:
    """Elements of a JSON array with the lines on which they start."""
    decoder = json.JSONDecoder()
    line, counted = 1, 0
    position = _skip_space(text, position + 1)
    if text.startswith("]", position):
        return
    while True:
        line, counted = line + text.count("\n", counted, position), position
        try:
            value, end = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise _broken(file, error.lineno, f"not valid JSON: {error.msg}") from error
        except RecursionError as error:
            raise _broken(file, line, "not valid JSON: nested too deeply") from error
        yield line, value
        position = _skip_space(text, end)
        if text.startswith("]", position):
            break
        if not text.startswith(",", position):
            where = text.count("\n", 0, position) + 1
            raise _broken(file, where, "not valid JSON: expected ',' or ']' after a row")
        position = _skip_space(text, position + 1)
    if _skip_space(text, position + 1) != len(text):
        raise _broken(file, text.count("\n", 0, position) + 1, "text after the closing ']'")


def _broken(file: str, line: int, reason: str) -> InvalidData:
    return InvalidData(f"{file}:{line}: {reason}", [BadRow(file, line, reason)])


def _refuse_single_object(path: Path, text: str, start: int) -> None:
    """A pretty-printed object would otherwise give one puzzling error per line."""
    first_line = text[start:].split("\n", 1)[0]
    if first_line.strip() == "{":
        line = text.count("\n", 0, start) + 1
        raise _broken(
            str(path), line, "a JSON object over several lines; expected an array or JSON Lines"
        )


def _read_lines(file: str, text: str) -> tuple[list[Row], list[BadRow]]:
    rows: list[Row] = []
    bad: list[BadRow] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append(Row(file, number, json.loads(line)))
        except json.JSONDecodeError as error:
            bad.append(BadRow(file, number, f"not valid JSON: {error.msg} (column {error.colno})"))
        except RecursionError:
            bad.append(BadRow(file, number, "not valid JSON: nested too deeply"))
    return rows, bad
