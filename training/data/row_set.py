"""One set of rows, read to its end: sources to records to examples, and what was seen on the way.

Nothing is refused here: what cannot be used is counted and kept with its reason.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from artifacts.chat import ChatRenderer
from artifacts.errors import InvalidData
from training.data.examples import Example, RowRenderer, Shape, example_hash
from training.data.forms.openai import NOTHING_LEARNED
from training.data.records import Conversation, Message, PlainText, PreferencePair, Record
from training.data.rows import BadRow
from training.data.sources import SourceRows, read_source
from training.doctor.edits import PERSONAL, Change, Treatment, texts_of
from training.doctor.figures import LANGUAGES, class_figures, language_of, length_figures
from training.doctor.near import RowText
from training.doctor.personal import find_personal_data
from training.doctor.report import Findings, bad_figures, example_of
from training.keys.data import DataSource

_NUM_PLACES = 5


@dataclass(frozen=True, slots=True)
class LoadedRow:
    """A row that can be learned; ``number`` counts all rows of its set from 1."""

    number: int
    record: Record
    examples: list[Example]  # several where a long row became windows
    identity: bytes  # of its examples

    @property
    def place(self) -> str:
        return f"{self.record.file}:{self.record.line}"


@dataclass(frozen=True, slots=True)
class Wanted:
    """How a set is read: the columns that every row must have, the labels, cleaning, seed."""

    treatment: Treatment
    shape: Shape
    seed: int
    columns: dict[str, str]  # column → the key of the configuration that needs it
    label_column: str | None = None


@dataclass(slots=True)
class RowSet:
    """Distinct usable rows in the order of their sources, and all that was counted."""

    rows: list[LoadedRow]
    bad: list[BadRow]
    broken: list[InvalidData]  # sources that could not be read past some place
    changes: list[Change]
    sources: list[dict[str, str]]  # name and SHA-256
    lengths: Sequence[int]  # tokens of every usable row before any cut, duplicates included
    findings: Findings


class _Reading:
    """The counters of one pass over the sources."""

    def __init__(self, wanted: Wanted, renderer: ChatRenderer) -> None:
        self._wanted = wanted
        self._rows = RowRenderer(renderer, wanted.shape)
        self.distinct: dict[bytes, LoadedRow] = {}
        self.bad: list[BadRow] = []
        self.changes: list[Change] = []
        self.num_duplicates = 0
        self._languages = Counter(dict.fromkeys(LANGUAGES, 0))
        self._labels: list[str] = []
        self._personal = Counter[str]()
        self._personal_rows: list[tuple[str, int, tuple[str, ...]]] = []
        self._cleaned: dict[str, dict[str, Any]] = {}

    @property
    def lengths(self) -> Sequence[int]:
        return self._rows.lengths

    def take(self, number: int, record: Record | BadRow) -> None:
        if isinstance(record, BadRow):
            self.bad.append(record)
            return
        self._look_for_personal_data(record)
        treated, changes = self._wanted.treatment.apply(record, number)
        self._note(changes)
        examples = self._render(treated)
        if isinstance(examples, BadRow):
            self.bad.append(examples)
        elif examples and not isinstance(treated, BadRow):
            self._keep(LoadedRow(number, treated, examples, _identity(examples)))

    def _render(self, record: Record | BadRow) -> list[Example] | BadRow:
        if isinstance(record, BadRow):
            return record
        for column, key in self._wanted.columns.items():
            if record.fields.get(column) is None:
                reason = f"no plain value {column!r}, which {key} asks for"
                return BadRow(record.file, record.line, reason)
        return self._rows.render(record)

    def _keep(self, row: LoadedRow) -> None:
        if row.identity in self.distinct:
            self.num_duplicates += 1
            return
        self.distinct[row.identity] = row
        text = row_text(row.record)
        self._languages[language_of(f"{text.prompt}\n{text.reply}")] += 1
        column = self._wanted.label_column
        self._labels.append(text.reply if column is None else str(row.record.fields.get(column)))

    def _look_for_personal_data(self, record: Record) -> None:
        kinds = [found.kind for _, text in texts_of(record) for found in find_personal_data(text)]
        if kinds:
            self._personal.update(kinds)
            self._personal_rows.append((record.file, record.line, tuple(dict.fromkeys(kinds))))

    def _note(self, changes: list[Change]) -> None:
        self.changes += changes
        for rule in {change.rule for change in changes}:
            self._cleaned.setdefault(rule, {"rows": 0})["rows"] += 1
        for change in changes:
            if change.before is not None and "before" not in self._cleaned[change.rule]:
                self._cleaned[change.rule] |= {
                    "row": f"{change.file}:{change.line}",
                    **example_of(change.before, change.after),
                }
        if changes:
            self._cleaned.setdefault("any", {"rows": 0})["rows"] += 1

    def findings(self, sources: Sequence[SourceRows]) -> Findings:
        rows = self._rows
        return Findings(
            files=[
                {"name": s.name, "sha256": s.sha256, "encoding": s.encoding, "rows": s.num_rows}
                for s in sources
            ],
            notes=[note for source in sources for note in source.notes],
            num_rows=sum(source.num_rows for source in sources),
            **bad_figures(self.bad),
            num_too_long=rows.num_too_long,
            num_masked=rows.num_masked + sum(bad.reason == NOTHING_LEARNED for bad in self.bad),
            num_truncated=rows.num_truncated,
            num_windowed=rows.num_windowed,
            num_undesirable=rows.num_undesirable,
            num_duplicates=self.num_duplicates,
            num_usable=len(self.distinct),
            tokens=length_figures(rows.lengths),
            languages=dict(self._languages),
            classes=class_figures(self._labels, is_given=self._wanted.label_column is not None),
            personal_data={
                "rows": len(self._personal_rows),
                "kinds": dict(self._personal),
                "redacted": self._wanted.treatment.redacts,
                "places": [
                    {"file": file, "line": line, "kinds": list(kinds)}
                    for file, line, kinds in self._personal_rows[:_NUM_PLACES]
                ],
            },
            cleaning=self._cleaned,
        )


def read_set(sources: Sequence[DataSource], renderer: ChatRenderer, wanted: Wanted) -> RowSet:
    """Raises InvalidInput for keys that do not fit a source; a broken file is in ``broken``."""
    reading = _Reading(wanted, renderer)
    opened: list[SourceRows] = []
    broken: list[InvalidData] = []
    number = 0
    for place, source in enumerate(sources):
        try:
            rows = read_source(source, wanted.seed, place)
            opened.append(rows)
            for record in rows:
                number += 1
                reading.take(number, record)
        except InvalidData as error:
            broken.append(error)
    return RowSet(
        rows=list(reading.distinct.values()),
        bad=reading.bad,
        broken=broken,
        changes=reading.changes,
        sources=[{"file": rows.name, "sha256": rows.sha256} for rows in opened],
        lengths=reading.lengths,
        findings=reading.findings(opened),
    )


def row_text(record: Record) -> RowText:
    """What the row says: system messages and tools, which many rows share, are left out."""
    if isinstance(record, PlainText):
        return RowText("", record.text)
    if isinstance(record, PreferencePair):
        replies = [*record.chosen, *record.rejected]
        return RowText("\n".join(_words(record.messages)), "\n".join(_words(replies)))
    asked = [m for m in record.messages if m["role"] != "assistant"]
    replies = [m for m in record.messages if m["role"] == "assistant"]
    return RowText("\n".join(_words(asked)), "\n".join(_words(replies)))


def _words(messages: Sequence[Message]) -> Iterator[str]:
    """Of all messages but the system's, arguments of calls included."""
    spoken = [message for message in messages if message["role"] != "system"]
    for _, text in texts_of(Conversation(spoken, None, "", 0)):
        yield text


def _identity(examples: Sequence[Example]) -> bytes:
    if len(examples) == 1:
        return example_hash(examples[0])
    return hashlib.sha256(b"".join(map(example_hash, examples))).digest()


__all__ = ["PERSONAL", "LoadedRow", "RowSet", "Wanted", "read_set", "row_text"]
