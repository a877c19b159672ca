"""Names, shapes and sampled bytes of a safetensors file. No torch.

Read, not mapped: a file that shrinks or fails under a mapping kills the process (SIGBUS).

Format: https://huggingface.co/docs/safetensors (8 bytes little-endian header length, JSON header,
then the tensors' bytes).
"""

from __future__ import annotations

import json
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
SAMPLE_BLOCK_BYTES = 4096
SAMPLE_BLOCKS = 16


class MalformedTensorFile(ValueError):
    """The bytes are not a safetensors file."""


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies; ``start`` and ``end`` are offsets in the file."""

    name: str
    dtype: str  # "BF16", "F32", …
    shape: tuple[int, ...]
    start: int
    end: int


class TensorFile:
    """One open file; use as a context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stream = path.open("rb")
        try:
            self.entries = self._parse_header()
        except BaseException:
            self._stream.close()
            raise

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stream.close()

    def sample(self, entry: TensorEntry) -> bytes:
        """16 blocks of 4 KiB spread evenly from first to last byte; all bytes of a small tensor."""
        length = entry.end - entry.start
        if length <= SAMPLE_BLOCKS * SAMPLE_BLOCK_BYTES:
            return self._read(entry.start, length)
        last = length - SAMPLE_BLOCK_BYTES
        starts = (entry.start + last * i // (SAMPLE_BLOCKS - 1) for i in range(SAMPLE_BLOCKS))
        return b"".join(self._read(start, SAMPLE_BLOCK_BYTES) for start in starts)

    def _parse_header(self) -> dict[str, TensorEntry]:
        size = os.fstat(self._stream.fileno()).st_size
        if size < 8:
            raise MalformedTensorFile(f"{self.path}: shorter than a safetensors header")
        (length,) = struct.unpack("<Q", self._read(0, 8))
        if length > min(MAX_HEADER_BYTES, size - 8):
            raise MalformedTensorFile(f"{self.path}: the header claims {length} bytes of {size}")
        try:
            header = json.loads(self._read(8, length))
            header.pop("__metadata__", None)
            begin = 8 + length
            entries = {name: _entry(name, fields, begin) for name, fields in header.items()}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise MalformedTensorFile(f"{self.path}: unreadable header ({error})") from error
        for entry in entries.values():
            if not begin <= entry.start <= entry.end <= size:
                raise MalformedTensorFile(f"{self.path}: {entry.name} lies outside the file")
        return entries

    def _read(self, start: int, length: int) -> bytes:
        content = os.pread(self._stream.fileno(), length, start)
        if len(content) != length:
            raise MalformedTensorFile(f"{self.path}: it has become shorter while it was read")
        return content


def _entry(name: str, fields: dict[str, Any], begin: int) -> TensorEntry:
    start, end = fields["data_offsets"]
    shape = tuple(int(length) for length in fields["shape"])
    return TensorEntry(name, str(fields["dtype"]), shape, begin + int(start), begin + int(end))
