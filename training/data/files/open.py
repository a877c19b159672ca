"""One file, whatever its format: inspected once, then read as often as somebody iterates."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from artifacts.errors import InvalidData
from training.data.files.encoding import Inspection, inspect_file, open_text, stamp_of
from training.data.files.json_text import read_json
from training.data.files.paragraphs import read_paragraphs
from training.data.files.tables import read_csv, read_parquet
from training.data.rows import BadRow, Row

_TEXT_READERS = {
    ".csv": read_csv,
    ".tsv": read_csv,
    ".txt": read_paragraphs,
    ".json": read_json,
    ".jsonl": read_json,
    ".ndjson": read_json,
}
_PARQUET_MARK = b"PAR1"


class DataFile:
    """A file of rows. Its name decides the format; what has another name is read as JSON."""

    def __init__(self, path: Path) -> None:
        """Reads the file once, for its hash and encoding. Raises InvalidData."""
        self._path = path
        self._is_parquet = _is_parquet(path)
        self._inspection: Inspection = inspect_file(path, is_text=not self._is_parquet)

    @property
    def name(self) -> str:
        return self._path.name

    @property
    def sha256(self) -> str:
        return self._inspection.sha256

    @property
    def encoding(self) -> str:
        return self._inspection.encoding

    @property
    def is_plain_text(self) -> bool:
        return self._path.suffix.lower() == ".txt"

    def rows(self) -> Iterator[Row | BadRow]:
        """Raises InvalidData where the file cannot be read past, or has changed meanwhile."""
        file = str(self._path)
        if self._inspection.stamp[0] == 0:
            raise InvalidData(f"{file} is empty; nothing to train on")
        if self._is_parquet:
            yield from read_parquet(file, self._path)
        else:
            reader = _TEXT_READERS.get(self._path.suffix.lower(), read_json)
            with open_text(self._path, self._inspection.encoding) as stream:
                yield from reader(file, stream)
        if stamp_of(self._path) != self._inspection.stamp:
            raise InvalidData(f"{file} changed while it was read; try again when it is whole")


def _is_parquet(path: Path) -> bool:
    if path.suffix.lower() == ".parquet":
        return True
    try:
        with path.open("rb") as stream:
            return stream.read(len(_PARQUET_MARK)) == _PARQUET_MARK
    except OSError as error:
        raise InvalidData(f"cannot read the data file {path}: {error.strerror}") from error
