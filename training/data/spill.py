"""Examples on disk, for data sets larger than memory: appended to files, read back by mapping them.

The files have no name: whatever way the process ends, the kernel takes them away. Beside the tokens
lies one record of 64 bytes per example.
"""

from __future__ import annotations

import struct
import tempfile
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, overload

import numpy as np
from numpy.typing import NDArray

from training.data.examples import Example, row_identity
from training.data.mixing import Parentage

_RECORD = struct.Struct("<qqqq32s")
_FIELDS = np.dtype([
    ("end", "<i8"), ("row", "<i8"), ("source", "<i8"), ("kind", "<i8"), ("identity", "V32"),
])  # fmt: skip
_BUFFER_BYTES = 1 << 20


class SpilledExamples(Sequence[Example]):
    """A list of examples whose tokens stay on disk; parts of it share the files."""

    def __init__(self, files: _Files, places: NDArray[np.int64]) -> None:
        self._files = files
        self._places = places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> SpilledExamples: ...
    def __getitem__(self, index: int | slice) -> Example | SpilledExamples:
        if isinstance(index, slice):
            return self.at(np.arange(len(self))[index])
        return self._files.example(int(self._places[index]))

    def at(self, places: NDArray[Any]) -> SpilledExamples:
        """Those at ``places`` of this list, in that order; a mask works, too."""
        return SpilledExamples(self._files, self._places[places])

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each example."""
        return self._files.lengths[self._places]

    @property
    def rows(self) -> NDArray[np.int64]:
        """The record that each example comes from."""
        return self._column("row")

    @property
    def parentage(self) -> Parentage:
        """Source and kind of each example, for mixing."""
        return Parentage(self._column("source"), self._column("kind"))

    @property
    def num_rows(self) -> int:
        """Rows that its examples come from: windows of one row are several examples."""
        return len(np.unique(self.rows))

    def row_identities(self) -> NDArray[np.void]:
        """``row_identity`` of each row once, in the order of bytes."""
        _, first = np.unique(self.rows, return_index=True)
        identities = self.identities[first]
        return identities[_byte_order(identities)]

    def by_identity(self) -> SpilledExamples:
        """In the order of the rows' identities, a row's windows in theirs."""
        return self.at(_byte_order(self.identities))

    @property
    def identities(self) -> NDArray[np.void]:
        """``row_identity`` of each example's row: 32 bytes."""
        return np.ascontiguousarray(self._files.table["identity"][self._places])

    @property
    def hashes(self) -> NDArray[np.uint64]:
        """The first 64 bits of the identities."""
        return self.identities.view("<u8").reshape(-1, 4)[:, 0].copy()

    def _column(self, name: str) -> NDArray[np.int64]:
        column: NDArray[np.int64] = self._files.table[name][self._places]
        return column


class Spill:
    """Takes rows one by one and gives their examples back as a list."""

    def __init__(self, folder: Path) -> None:
        """Opens nameless files on the file system of ``folder``. Raises OSError."""
        self._ids, self._labels, self._table = (
            tempfile.TemporaryFile(dir=folder, buffering=_BUFFER_BYTES)  # noqa: SIM115 (finish)
            for _ in range(3)
        )
        self._end = 0

    def append(self, examples: Sequence[Example]) -> None:
        """The examples of one row, of which there is at least one. Raises OSError."""
        identity = row_identity(examples)
        for example in examples:
            self._ids.write(array("i", example.input_ids).tobytes())
            self._labels.write(array("i", example.labels).tobytes())
            self._end += len(example.input_ids)
            self._table.write(
                _RECORD.pack(self._end, example.row, example.source, example.kind, identity)
            )

    def finish(self) -> SpilledExamples:
        """Everything that was appended. Nothing can be appended afterwards."""
        files = _Files(
            _mapped(self._ids, np.dtype("<i4")),
            _mapped(self._labels, np.dtype("<i4")),
            _mapped(self._table, _FIELDS),
        )
        return SpilledExamples(files, np.arange(len(files.table)))


class _Files:
    """The mapped files; the tokens of an example end where the table says."""

    def __init__(
        self, ids: NDArray[np.int32], labels: NDArray[np.int32], table: NDArray[Any]
    ) -> None:
        self._ids = ids
        self._labels = labels
        self.table = table
        self._ends: NDArray[np.int64] = table["end"]

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self._ends, prepend=np.int64(0))

    def example(self, place: int) -> Example:
        start = int(self._ends[place - 1]) if place else 0
        end = int(self._ends[place])
        record = self.table[place]
        ids, labels = array("i"), array("i")
        ids.frombytes(self._ids[start:end].tobytes())
        labels.frombytes(self._labels[start:end].tobytes())
        return Example(ids, labels, int(record["row"]), int(record["source"]), int(record["kind"]))


def _byte_order(identities: NDArray[np.void]) -> NDArray[np.int64]:
    """A stable order of 32-byte strings: as four big-endian numbers, the first weighs most."""
    return np.lexsort(identities.view(">u8").reshape(-1, 4).T[::-1])


def _mapped(file: IO[bytes], dtype: np.dtype[Any]) -> NDArray[Any]:
    """The file as an array that is read from disk when it is looked at."""
    with file:
        file.flush()
        if file.tell() == 0:  # nothing to map
            return np.empty(0, dtype)
        return np.memmap(file, dtype, mode="r")
