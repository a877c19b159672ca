"""Cleaning and redaction of whole records, with a note of every change, and the way back.

Cleaned are the words of system, user and assistant and plain texts: what a tool returned and the
arguments of a call are data, whose form is not ours to tidy. Redaction reads those, too.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from artifacts.errors import InvalidData
from artifacts.safe_write import write_bytes
from training.data.records import Message, PlainText, PreferencePair, Record
from training.data.rows import BadRow
from training.doctor.cleaning import clean_text
from training.doctor.personal import redact

PERSONAL = "personal"
_CLEANED_ROLES = ("system", "user", "assistant")

Steps = tuple[str | int, ...]


class Change(NamedTuple):
    """What one rule made of one text. ``row`` counts the rows of all sources from 1, for several
    may stand in one line; ``place`` is the text's path inside the record.

    ``before`` is None where personal data was replaced: it would not be gone otherwise.
    """

    row: int
    file: str
    line: int
    place: str
    rule: str
    before: str | None
    after: str


@dataclass(frozen=True, slots=True)
class Treatment:
    """What is done to every text; ``rules`` are names of ``training.doctor.cleaning.RULES``."""

    rules: tuple[str, ...] = ()
    redacts: bool = False

    def apply(self, record: Record, row: int) -> tuple[Record | BadRow, list[Change]]:
        """The record as it will be learned, or why nothing is left of one of its texts."""
        if not self.rules and not self.redacts:
            return record, []
        changes: list[Change] = []
        new: dict[Steps, str] = {}
        for path, text in texts_of(record):
            after, edits = self._treat(text, self.rules if is_cleaned(record, path) else ())
            if after == text:
                continue
            place = show_path(path)
            changes += [Change(row, record.file, record.line, place, *edit) for edit in edits]
            if text.strip() and not after.strip():
                rules = ", ".join(dict.fromkeys(edit[0] for edit in edits))
                return BadRow(record.file, record.line, f"{place} is empty after {rules}"), changes
            new[path] = after
        treated = with_texts(record, new)
        if isinstance(treated, PreferencePair) and treated.chosen == treated.rejected:
            reason = "the preferred and the other reply are the same after cleaning"
            return BadRow(record.file, record.line, reason), changes
        return treated, changes

    def _treat(
        self, text: str, rules: Sequence[str]
    ) -> tuple[str, list[tuple[str, str | None, str]]]:
        """Redaction before and after the rules, until there is nothing left for either."""
        edits: list[tuple[str, str | None, str]] = []
        while True:
            if self.redacts and (redacted := redact(text)) != text:
                edits.append((PERSONAL, None, redacted))
                text = redacted
            cleaned, rounds = clean_text(text, rules)
            edits += rounds
            if cleaned == text:
                return text, edits
            text = cleaned


# --- the texts of a record ---


def texts_of(record: Record) -> Iterator[tuple[Steps, str]]:
    """Every text that a model reads or learns, with its path."""
    if isinstance(record, PlainText):
        yield ("text",), record.text
        return
    for name in ("messages", "chosen", "rejected"):
        for number, message in enumerate(getattr(record, name, ())):
            yield from _strings(message.get("content"), (name, number, "content"))
            yield from _arguments(message.get("tool_calls"), (name, number, "tool_calls"))


def _arguments(calls: Any, path: Steps) -> Iterator[tuple[Steps, str]]:
    """Of all calls. What has another form than a call is refused where rows are rendered."""
    for number, call in enumerate(calls if isinstance(calls, list) else ()):
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(function, dict):
            yield from _strings(function.get("arguments"), (*path, number, "function", "arguments"))


def is_cleaned(record: Record, path: Steps) -> bool:
    """Whether the text at ``path`` is written for people."""
    if isinstance(record, PlainText):
        return True
    message: Message = getattr(record, str(path[0]))[path[1]]
    return path[2] == "content" and message["role"] in _CLEANED_ROLES


def with_texts(record: Record, new: dict[Steps, str]) -> Record:
    """A copy of the record with other texts at these paths."""
    if not new:
        return record
    if isinstance(record, PlainText):
        return replace(record, text=new[("text",)])
    names = {str(path[0]) for path in new}
    lists = {name: copy.deepcopy(getattr(record, name)) for name in names}
    for (name, *steps), text in new.items():
        target: Any = lists[str(name)]
        for step in steps[:-1]:
            target = target[step]
        target[steps[-1]] = text
    return replace(record, **lists)


def _strings(value: Any, path: Steps) -> Iterator[tuple[Steps, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, list):
        for number, each in enumerate(value):
            yield from _strings(each, (*path, number))
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from _strings(each, (*path, key))


def show_path(path: Steps) -> str:
    """``messages[1].content``"""
    shown = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return shown.removeprefix(".")


# --- the note of all changes ---


def write_changes(changes: Iterable[Change], path: Path) -> None:
    """One JSON object per line: row, file, line, place, rule, before, after."""
    lines = (json.dumps(change._asdict(), ensure_ascii=False) for change in changes)
    write_bytes(path, "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogatepass"))


def read_changes(path: Path) -> list[Change]:
    """Raises InvalidData for a file that ``write_changes`` did not write."""
    try:
        lines = path.read_bytes().decode("utf-8", "surrogatepass").split("\n")
        return [Change(**json.loads(line)) for line in lines if line]
    except (OSError, ValueError, TypeError) as error:
        raise InvalidData(f"{path} is no record of changes: {error}") from error


def undo_changes(records: Mapping[int, Record], changes: Iterable[Change]) -> dict[int, Record]:
    """The records, by row, as they were before cleaning; placeholders of personal data stay.

    Raises InvalidData where a text is not what the changes made of it.
    """
    by_row: dict[int, dict[str, list[Change]]] = {}
    for change in changes:
        by_row.setdefault(change.row, {}).setdefault(change.place, []).append(change)
    return {row: _undo(record, by_row.get(row, {})) for row, record in records.items()}


def _undo(record: Record, places: dict[str, list[Change]]) -> Record:
    new: dict[Steps, str] = {}
    for path, text in texts_of(record):
        made = places.get(show_path(path))
        if made is None:
            continue
        if made[-1].after != text:
            raise InvalidData(
                f"{record.file}:{record.line}: {show_path(path)} is not what cleaning left there; "
                "these changes belong to other rows",
                [(record.file, record.line, "changed since it was cleaned")],
            )
        new[path] = next((c.before for c in made if c.before is not None), text)
    return with_texts(record, new)
