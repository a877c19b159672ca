"""Answers that the database does not know yet, as JSON lines: a killed process forgets none.

One write per answer, into the system's memory and not to the disk, so that a chat may wait for it;
only a power cut loses what was written a moment ago. Not safe for several threads: its owner locks.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, BinaryIO

log = logging.getLogger("loraloop.server")

Record = dict[str, Any]


class AnswerJournal:
    """Numbered files ``<n>.jsonl`` in a folder of its own; only the newest one grows."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._number = 1 + max((number for number, _ in self._files()), default=0)
        self._stream: BinaryIO | None = None

    def read(self) -> list[Record]:
        """What former processes left, oldest first. A line that was cut off is skipped."""
        records: list[Record] = []
        for _, path in sorted(self._files()):
            for line in path.read_bytes().splitlines():
                try:
                    records.append(json.loads(line))
                except ValueError:
                    log.warning("%s: skipped a torn line", path)
        return records

    def append(self, record: Record) -> None:
        """Raises OSError; the next record then goes to a file of its own."""
        line = json.dumps(record).encode() + b"\n"
        if self._stream is None:
            self._stream = self._path(self._number).open("ab", buffering=0)
        try:
            num_bytes = self._stream.write(line)
        except OSError:
            self.seal()
            raise
        if num_bytes != len(line):
            self.seal()
            raise OSError(f"{self._folder}: wrote {num_bytes} of {len(line)} bytes")

    def seal(self) -> int:
        """Begin a new file; returns its number. All records so far lie in files of lower ones."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None
            self._number += 1
        return self._number

    def discard(self, before: int) -> None:
        """Remove the files with lower numbers: the database has their records."""
        for number, path in self._files():
            if number < before:
                path.unlink(missing_ok=True)

    def _path(self, number: int) -> Path:
        return self._folder / f"{number}.jsonl"

    def _files(self) -> list[tuple[int, Path]]:
        paths = self._folder.glob("*.jsonl")
        return [(int(path.stem), path) for path in paths if path.stem.isdecimal()]
