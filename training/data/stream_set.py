"""One set of rows read through disk: what ``row_set`` is for memory, with nothing kept per row.

Counted are the same things (languages with duplicates, which show only at the end), but no classes,
whose names would have to be kept, and no list of what cleaning changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts.chat import ChatRenderer
from artifacts.errors import InvalidData
from training.data.examples import RowRenderer
from training.data.records import Record
from training.data.row_set import Wanted, row_text
from training.data.rows import BadRow
from training.data.sources import SourceRows, read_source
from training.data.spill import Spill, SpilledExamples
from training.data.streamed import distinct_rows
from training.doctor.edits import texts_of
from training.doctor.figures import LANGUAGES, language_of, length_figures
from training.doctor.personal import find_personal_data
from training.doctor.report import Findings, bad_figures
from training.keys.data import DataSource

# A file in which every row is bad must not be held as complaints.
_MAX_BAD_KEPT = 1000
_NUM_PLACES = 5
NOTE = (
    "streaming: near duplicates and classes are not looked for, and what cleaning changed is "
    "counted, not kept"
)


@dataclass(slots=True)
class StreamedSet:
    """Distinct usable rows on disk in the order of their sources, and what was counted."""

    examples: SpilledExamples
    bad: list[BadRow]  # the first ones; ``findings.num_bad`` is all
    broken: list[InvalidData]
    sources: list[dict[str, str]]  # name and SHA-256
    findings: Findings


class _Pass:
    """The counters of one pass over the sources."""

    def __init__(self, wanted: Wanted, renderer: ChatRenderer, folder: Path) -> None:
        self._wanted = wanted
        self._rows = RowRenderer(renderer, wanted.shape)
        self._spill = Spill(folder)
        self.bad: list[BadRow] = []
        self._num_bad = 0
        self._languages = Counter(dict.fromkeys(LANGUAGES, 0))
        self._personal = Counter[str]()
        self._num_personal = 0
        self._places: list[dict[str, Any]] = []
        self._cleaned = Counter[str]()

    def take(self, record: Record | BadRow) -> None:
        if not isinstance(record, BadRow):
            record = self._treated(record)
        rendered = record if isinstance(record, BadRow) else self._rows.render(record)
        if isinstance(rendered, BadRow):
            self._num_bad += 1
            if len(self.bad) < _MAX_BAD_KEPT:
                self.bad.append(rendered)
        elif rendered and not isinstance(record, BadRow):
            text = row_text(record)
            self._languages[language_of(f"{text.prompt}\n{text.reply}")] += 1
            self._spill.append(rendered)

    def finish(self) -> SpilledExamples:
        return self._spill.finish()

    def _treated(self, record: Record) -> Record | BadRow:
        kinds = [found.kind for _, text in texts_of(record) for found in find_personal_data(text)]
        if kinds:
            self._personal.update(kinds)
            self._num_personal += 1
            if len(self._places) < _NUM_PLACES:
                found = list(dict.fromkeys(kinds))
                self._places.append({"file": record.file, "line": record.line, "kinds": found})
        treated, changes = self._wanted.treatment.apply(record, 0)
        self._cleaned.update({change.rule for change in changes} | ({"any"} if changes else set()))
        return treated

    def findings(
        self, sources: Sequence[SourceRows], num_usable: int, num_duplicates: int
    ) -> Findings:
        rows = self._rows
        return Findings(
            files=[
                {"name": s.name, "sha256": s.sha256, "encoding": s.encoding, "rows": s.num_rows}
                for s in sources
            ],
            notes=[*(note for source in sources for note in source.notes), NOTE],
            num_rows=sum(source.num_rows for source in sources),
            **bad_figures(self.bad) | {"num_bad": self._num_bad},
            num_too_long=rows.num_too_long,
            num_masked=rows.num_masked,
            num_truncated=rows.num_truncated,
            num_windowed=rows.num_windowed,
            num_undesirable=rows.num_undesirable,
            num_duplicates=num_duplicates,
            num_usable=num_usable,
            tokens=length_figures(rows.lengths),
            languages=dict(self._languages),
            classes=None,
            personal_data={
                "rows": self._num_personal,
                "kinds": dict(self._personal),
                "redacted": self._wanted.treatment.redacts,
                "places": self._places,
            },
            cleaning={rule: {"rows": count} for rule, count in self._cleaned.items()},
        )


def stream_set(
    sources: Sequence[DataSource], renderer: ChatRenderer, wanted: Wanted, folder: Path
) -> StreamedSet:
    """Raises InvalidInput for keys that do not fit a source, OSError on a full disk; a broken file
    is in ``broken``. ``folder`` decides on which disk the rows lie."""
    reading = _Pass(wanted, renderer, folder)
    opened: list[SourceRows] = []
    broken: list[InvalidData] = []
    for place, source in enumerate(sources):
        try:
            rows = read_source(source, wanted.seed, place)
            opened.append(rows)
            for record in rows:
                reading.take(record)
        except InvalidData as error:
            broken.append(error)
    every = reading.finish()
    distinct = distinct_rows(every)
    num_usable = distinct.num_rows
    return StreamedSet(
        examples=distinct,
        bad=reading.bad,
        broken=broken,
        sources=[{"file": rows.name, "sha256": rows.sha256} for rows in opened],
        findings=reading.findings(opened, num_usable, every.num_rows - num_usable),
    )
