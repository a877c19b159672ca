"""Plain text to documents: one per paragraph, and paragraphs are parted by blank lines."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO

from training.data.rows import MAX_ROW_CHARS, BadRow, Row, broken_file


def read_paragraphs(file: str, stream: IO[str]) -> Iterator[Row | BadRow]:
    """Rows ``{"text": …}`` with the line on which each paragraph starts.

    White space at its end goes, the line breaks inside stay. Raises InvalidData without any text.
    """
    lines: list[str] = []
    start, num_chars, is_empty = 1, 0, True
    for number, line in enumerate(_lines(stream), start=1):
        if line.strip():
            start = start if lines else number
            num_chars += len(line)
            if num_chars <= MAX_ROW_CHARS:
                lines.append(line)
        elif lines:
            yield _document(file, start, lines, num_chars)
            lines, num_chars, is_empty = [], 0, False
    if lines:
        yield _document(file, start, lines, num_chars)
    elif is_empty:
        raise broken_file(file, 1, "the file is empty; expected text")


def _lines(stream: IO[str]) -> Iterator[str]:
    while line := stream.readline(MAX_ROW_CHARS):
        yield line


def _document(file: str, start: int, lines: list[str], num_chars: int) -> Row | BadRow:
    if num_chars > MAX_ROW_CHARS:
        return BadRow(file, start, f"a paragraph longer than {MAX_ROW_CHARS} characters")
    return Row(file, start, {"text": "".join(lines).replace("\r\n", "\n").rstrip()})
