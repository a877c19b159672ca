"""Names, shapes and raw bytes of a safetensors file, through mmap. No torch, no copies.

Format: https://huggingface.co/docs/safetensors (8 bytes little-endian header length, JSON header,
then the tensors' bytes).
"""

from __future__ import annotations

import json
import mmap
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
        with path.open("rb") as stream:
            size = path.stat().st_size
            if size < 8:
                raise MalformedTensorFile(f"{path}: shorter than a safetensors header")
            self._bytes = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        try:
            self.entries = _parse_header(path, self._bytes, size)
        except MalformedTensorFile:
            self._bytes.close()
            raise

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bytes.close()

    def sample(self, entry: TensorEntry) -> bytes:
        """16 blocks of 4 KiB spread evenly from first to last byte; all bytes of a small tensor."""
        length = entry.end - entry.start
        if length <= SAMPLE_BLOCKS * SAMPLE_BLOCK_BYTES:
            return self._bytes[entry.start : entry.end]
        last = length - SAMPLE_BLOCK_BYTES
        starts = (entry.start + last * i // (SAMPLE_BLOCKS - 1) for i in range(SAMPLE_BLOCKS))
        return b"".join(self._bytes[start : start + SAMPLE_BLOCK_BYTES] for start in starts)


def _parse_header(path: Path, content: mmap.mmap, size: int) -> dict[str, TensorEntry]:
    (length,) = struct.unpack("<Q", content[:8])
    if length > min(MAX_HEADER_BYTES, size - 8):
        raise MalformedTensorFile(f"{path}: the header claims {length} bytes of {size}")
    try:
        header = json.loads(content[8 : 8 + length])
        header.pop("__metadata__", None)
        begin = 8 + length
        entries = {name: _entry(name, fields, begin) for name, fields in header.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise MalformedTensorFile(f"{path}: unreadable header ({error})") from error
    for entry in entries.values():
        if not begin <= entry.start <= entry.end <= size:
            raise MalformedTensorFile(f"{path}: {entry.name} lies outside the file")
    return entries


def _entry(name: str, fields: dict[str, Any], begin: int) -> TensorEntry:
    start, end = fields["data_offsets"]
    shape = tuple(int(length) for length in fields["shape"])
    return TensorEntry(name, str(fields["dtype"]), shape, begin + int(start), begin + int(end))
