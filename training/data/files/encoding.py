"""Which bytes a file holds: its SHA-256 and its encoding, found in one pass that keeps nothing.

UTF-8 is expected; UTF-16, UTF-32 and GBK/GB18030 are recognised, and whoever reads says so. Bytes
that are none of these are refused with their line: a guess would be learned as mojibake.
"""

from __future__ import annotations

import codecs
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from artifacts.errors import InvalidData
from training.data.rows import broken_file

_CHUNK_BYTES = 1 << 20
_MARKS = (  # UTF-32 first: its mark begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)


@dataclass(frozen=True, slots=True)
class Inspection:
    """A file's bytes in short; ``stamp`` tells whether it has changed since."""

    sha256: str
    encoding: str  # a codec that takes a byte order mark away; "binary" was not looked into
    stamp: tuple[int, int]  # size in bytes, time of the last change in ns


def inspect_file(path: Path, *, is_text: bool) -> Inspection:
    """Reads the whole file once. Raises InvalidData if it cannot be read or decoded.

    Memory: one piece of 1 MiB.
    """
    digest = hashlib.sha256()
    try:
        stamp = stamp_of(path)
        with path.open("rb") as stream:
            head = stream.read(4)
            encoding = _encoding_by_head(head) if is_text else "binary"
            stream.seek(0)
            codec = encoding if encoding not in (None, "utf-8-sig") else "utf-8"
            decoder = codecs.getincrementaldecoder(codec)() if is_text else None
            fault = _feed(stream, digest, decoder)
    except OSError as error:
        raise InvalidData(f"cannot read the data file {path}: {error.strerror}") from error
    if fault is None:
        return Inspection(digest.hexdigest(), encoding or "utf-8", stamp)
    if encoding in (None, "utf-8-sig") and _is_gb18030(path, fault):
        return Inspection(digest.hexdigest(), "gb18030", stamp)
    raise _no_encoding(path, encoding or "utf-8", fault)


def stamp_of(path: Path) -> tuple[int, int]:
    """Changes whenever the file does."""
    stat = os.stat(path)
    return stat.st_size, stat.st_mtime_ns


def open_text(path: Path, encoding: str) -> IO[str]:
    """The text without byte order mark; lines end at line feeds only, and nothing is translated."""
    return path.open(encoding=encoding, newline="\n")


def _encoding_by_head(head: bytes) -> str | None:
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return encoding
    # Without a mark: data files begin with a sign of ASCII, whose other byte is then zero.
    if len(head) >= 2 and head[0] and not head[1]:
        return "utf-16-le"
    if len(head) >= 2 and not head[0] and head[1]:
        return "utf-16-be"
    return None


def _feed(
    stream: IO[bytes], digest: hashlib._Hash, decoder: codecs.IncrementalDecoder | None
) -> int | None:
    """Reads to the end; the offset of the first byte that cannot be decoded, None without one."""
    offset, fault = 0, None
    for piece in _pieces(stream):
        digest.update(piece)
        if decoder is not None and fault is None:
            pending = len(decoder.getstate()[0])
            try:
                decoder.decode(piece)
            except UnicodeDecodeError as error:
                fault = offset - pending + error.start
        offset += len(piece)
    if decoder is not None and fault is None:
        try:
            decoder.decode(b"", True)
        except UnicodeDecodeError:
            fault = offset - 1
    return fault


def _pieces(stream: IO[bytes]) -> Iterator[bytes]:
    while piece := stream.read(_CHUNK_BYTES):
        yield piece


def _is_gb18030(path: Path, fault: int) -> bool:
    """Whether the file is GBK or GB18030 rather than UTF-8 with a broken byte, or Latin-1.

    Broken UTF-8 often decodes as GB18030 too, into nonsense, so the neighbourhood of the fault must
    hold more of what UTF-8 cannot be than of what it can, and be mostly common Chinese characters.
    """
    with path.open("rb") as stream:
        stream.seek(max(0, fault - _CHUNK_BYTES // 2))
        sample = stream.read(_CHUNK_BYTES)
        as_utf8 = sample.decode("utf-8", "replace")
        num_wide = sum(character > "\u07ff" for character in as_utf8)
        num_replaced = as_utf8.count("\ufffd")
        if num_wide - num_replaced > num_replaced:
            return False
        foreign = [c for c in sample.decode("gb18030", "replace") if c > "\x7f"]
        if len("".join(foreign).encode("gb2312", "ignore")) < len(foreign):  # two bytes each
            return False
        stream.seek(0)
        nothing = hashlib.sha256()
        return _feed(stream, nothing, codecs.getincrementaldecoder("gb18030")()) is None


def _no_encoding(path: Path, encoding: str, fault: int) -> InvalidData:
    line = 1
    with path.open("rb") as stream:
        left = fault
        while left > 0 and (piece := stream.read(min(left, _CHUNK_BYTES))):
            line += piece.count(b"\n")
            left -= len(piece)
    name = "UTF-8" if encoding.startswith("utf-8") else encoding.upper()
    others = " nor GBK/GB18030" if name == "UTF-8" else ""
    neither = f"neither {name}{others}" if others else f"not {name}"
    return broken_file(
        str(path), line, f"{neither} at byte offset {fault}; convert the file to UTF-8"
    )
