"""CSV, TSV and Parquet to rows: one object per row, keyed by the names of the columns."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from artifacts.errors import InvalidData
from training.data.rows import MAX_ROW_CHARS, BadRow, Row, broken_file

_BATCH_ROWS = 1024
_DELIMITERS = ",\t;"


def read_csv(file: str, stream: IO[str]) -> Iterator[Row | BadRow]:
    """Rows under the names of the first line; ``line`` is the physical line on which a row starts.

    Cells are text. A row with more or fewer cells than there are names is bad. Raises InvalidData
    for a file without a row, for a name that appears twice and for a quote that is never closed.
    """
    csv.field_size_limit(MAX_ROW_CHARS)  # of the process: the default is 128 KiB
    head = stream.readline()
    if not head.strip():
        raise broken_file(file, 1, "the first line is empty; expected the names of the columns")
    stream.seek(0)
    delimiter = max(_DELIMITERS, key=head.count)
    reader = csv.reader(stream, delimiter=delimiter, strict=True)
    num_rows, line = 0, 1
    try:
        names = _names(file, next(reader))
        line = reader.line_num + 1
        for cells in reader:
            if cells:
                num_rows += 1
                yield _csv_row(file, line, names, cells)
            line = reader.line_num + 1
    except csv.Error as error:
        raise broken_file(file, line, f"not valid CSV: {error}") from error
    if not num_rows:
        raise broken_file(file, line, "no row below the names of the columns")


def _names(file: str, cells: list[str]) -> list[str]:
    names = [cell.strip().removeprefix("\ufeff") for cell in cells]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise broken_file(file, 1, f"column {twice[0]!r} appears twice")
    return names


def _csv_row(file: str, line: int, names: list[str], cells: list[str]) -> Row | BadRow:
    if len(cells) != len(names):
        reason = f"{len(cells)} cells under {len(names)} columns ({', '.join(names)})"
        return BadRow(file, line, reason)
    return Row(file, line, dict(zip(names, cells, strict=True)))


def read_parquet(file: str, path: Path) -> Iterator[Row | BadRow]:
    """Rows numbered from 1, a thousand at a time. Raises InvalidData for what is no Parquet."""
    import pyarrow
    import pyarrow.parquet as parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as table:
            for batch in table.iter_batches(batch_size=_BATCH_ROWS):
                for value in batch.to_pylist():
                    number += 1
                    yield Row(file, number, value)
    except (pyarrow.ArrowException, OSError) as error:
        raise InvalidData(f"{file}: not readable as Parquet after row {number}: {error}") from error
    if not number:
        raise InvalidData(f"{file} holds no row; nothing to train on")
