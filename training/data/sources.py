"""Sources to records: a file, a folder, an entry of ``dataset_info.json`` or a hub data set.

Rows are read while somebody iterates. What a reader should know and is no error (an encoding, a
column that nobody named) is in ``notes``.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from artifacts.errors import InvalidData, InvalidInput
from training.data.files.open import DataFile
from training.data.forms.layout import Layout
from training.data.forms.read import RecordReader
from training.data.place import HubData, Place, find_place
from training.data.records import Record
from training.data.rows import BadRow, Row
from training.keys.data import DataSource

SUFFIXES = {".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".txt"}
_EXPECTED_ENCODINGS = ("utf-8", "utf-8-sig", "binary")


class _Part(Protocol):
    """What a file and a hub data set have in common."""

    @property
    def name(self) -> str: ...
    @property
    def sha256(self) -> str: ...
    @property
    def encoding(self) -> str: ...
    @property
    def is_plain_text(self) -> bool: ...

    def rows(self) -> Iterator[Row | BadRow]: ...


class SourceRows:
    """The rows of one source, read anew by each iteration.

    ``num_rows`` counts those of the last iteration, bad ones included; ``notes`` is complete when
    it has ended.
    """

    def __init__(self, place: Place, parts: Sequence[_Part], seed: int, number: int) -> None:
        self._place = place
        self._parts = parts
        self._seed = seed
        self._number = number
        self.num_rows = 0
        self.notes: list[str] = [
            f"{part.name} is in {part.encoding.upper()}, not UTF-8: decoded"
            for part in parts
            if part.encoding not in _EXPECTED_ENCODINGS
        ]

    @property
    def name(self) -> str:
        """The file, folder or data set, without the folders above it."""
        return self._place.data.name

    @property
    def sha256(self) -> str:
        """Of the file's bytes; of a folder, of the names and hashes of its files."""
        if len(self._parts) == 1:
            return self._parts[0].sha256
        listed = "".join(f"{part.sha256}  {part.name}\n" for part in self._parts)
        return hashlib.sha256(listed.encode()).hexdigest()

    @property
    def encoding(self) -> str:
        """That of its files, with commas between several."""
        return ", ".join(dict.fromkeys(part.encoding for part in self._parts))

    def __iter__(self) -> Iterator[Record | BadRow]:
        """Raises InvalidData where a file cannot be read past."""
        self.num_rows = 0
        for part, rows in self._rows_by_part():
            reader = RecordReader(_layout_for(self._place.layout, part), self._number)
            for record in reader.read(rows):
                self.num_rows += 1
                yield record
            self._note(*(f"{part.name}: {note}" for note in reader.notes))

    def _rows_by_part(self) -> Iterator[tuple[_Part, Iterable[Row | BadRow]]]:
        wanted = self._place.num_samples
        if wanted is None:
            yield from ((part, part.rows()) for part in self._parts)
            return
        every = ((part, row) for part in self._parts for row in part.rows())
        sample, num_rows = _sample(every, wanted, self._seed)
        if num_rows < wanted:
            self._note(f"{self.name}: num_samples={wanted}, but it has {num_rows} rows: all taken")
        else:
            self._note(f"{self.name}: {wanted} of {num_rows} rows, chosen by seed {self._seed}")
        for part in self._parts:
            yield part, [row for its_part, row in sample if its_part is part]

    def _note(self, *notes: str) -> None:
        self.notes += [note for note in notes if note not in self.notes]


def read_source(source: DataSource, seed: int, number: int = 0) -> SourceRows:
    """``number`` is the source's place in the configuration; its records carry it.

    Raises InvalidInput for keys that do not fit the source, InvalidData for what is not there.
    """
    place = find_place(source)
    return SourceRows(place, _open(place.data), seed, number)


def _open(data: Path | HubData) -> Sequence[_Part]:
    if isinstance(data, HubData):
        return [HubRows(data)]
    if not data.is_dir():
        return [DataFile(data)]
    files = sorted(path for path in data.iterdir() if path.suffix.lower() in SUFFIXES)
    if not files:
        raise InvalidData(f"{data} holds no data file ({', '.join(sorted(SUFFIXES))})")
    return [DataFile(path) for path in files]


def _layout_for(layout: Layout, part: _Part) -> Layout:
    """The rows of a text file are paragraphs, whatever the name of the form was taken from."""
    if not part.is_plain_text:
        return layout
    if layout.carrier not in (None, "text") or layout.goal not in (None, "supervised"):
        raise InvalidInput(
            f"{part.name} holds plain text, not {layout.carrier or layout.goal} rows; "
            "say form: text, or give a JSON, CSV or Parquet file",
            param="data",
        )
    return Layout("text", "supervised", layout.columns)


def _sample(
    rows: Iterable[tuple[_Part, Row | BadRow]], wanted: int, seed: int
) -> tuple[list[tuple[_Part, Row | BadRow]], int]:
    """``wanted`` rows in their order, each equally likely, and how many there were: one pass.

    Vitter's algorithm R (ACM TOMS 11, 1985).
    """
    draw = random.Random(seed)
    kept: list[tuple[int, tuple[_Part, Row | BadRow]]] = []
    num_rows = 0
    for num_rows, row in enumerate(rows, start=1):
        if len(kept) < wanted:
            kept.append((num_rows, row))
        elif (place := draw.randrange(num_rows)) < wanted:
            kept[place] = (num_rows, row)
    return [row for _, row in sorted(kept, key=lambda pair: pair[0])], num_rows


class HubRows:
    """A data set of the hub, as ``datasets`` keeps it on this disk once it is loaded."""

    encoding = "utf-8"
    is_plain_text = False

    def __init__(self, data: HubData) -> None:
        """Downloads what is not in the cache. Raises InvalidData with the library's complaint."""
        self.name = f"hub:{data.name}"
        self._rows: Iterable[Any] = _load(data)
        digest = hashlib.sha256()
        for row in self._rows:
            digest.update(json.dumps(row, sort_keys=True, default=str).encode())
        self.sha256 = digest.hexdigest()

    def rows(self) -> Iterator[Row | BadRow]:
        number = 0
        for number, value in enumerate(self._rows, start=1):
            yield Row(self.name, number, dict(value))
        if not number:
            raise InvalidData(f"{self.name} holds no row; nothing to train on")


def _load(data: HubData) -> Any:
    import datasets

    try:
        return datasets.load_dataset(
            data.name, name=data.subset, split=data.split, data_dir=data.folder
        )
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise InvalidData(
            f"cannot load {data.name!r} (subset {data.subset}, split {data.split}) from the hub: "
            f"{error}"
        ) from error
