"""JSON arrays and JSON Lines to rows, with a bounded part of the text in memory.

``str.splitlines`` is not used: it also splits at U+2028 and friends, which JSON strings may hold.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import IO, Any

from training.data.rows import MAX_ROW_CHARS, BadRow, Row, broken_file

_CHUNK_CHARS = 1 << 18
_SPACE = re.compile(r"[ \t\r\n]*")
_ENDS = frozenset(", ]\t\r\n")  # what may stand behind a number
# What is cut off in the middle of a number, a word or an escape is found this near to the end.
_LONGEST_TORN = 16


class RowDecoder:
    """JSON's own decoder that also says what JSON readers let pass: keys given twice, NaN."""

    def __init__(self) -> None:
        self._decoder = json.JSONDecoder(
            object_pairs_hook=self._object, parse_constant=self._constant
        )
        self._complaint: str | None = None

    def decode(self, text: str, position: int = 0) -> tuple[Any, int, str | None]:
        """Value, where it ends, and what is wrong with it all the same.

        Raises JSONDecodeError; ValueError for a number too long; RecursionError.
        """
        self._complaint = None
        value, end = self._decoder.raw_decode(text, position)
        return value, end, self._complaint

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
            self._complaint = f"key {twice!r} appears twice in one object"
        return found

    def _constant(self, word: str) -> float:
        self._complaint = f"{word} is no value of JSON"
        return float(word)


def read_json(file: str, stream: IO[str]) -> Iterator[Row | BadRow]:
    """Rows of a JSON array or of JSON Lines; whichever it is shows at the first character.

    A line that is no JSON is a bad row; an array that breaks off raises InvalidData, and so does an
    empty file.
    """
    scan = _Scan(file, stream)
    first = scan.skip_space()
    if first == "":
        raise broken_file(file, 1, "the file is empty; expected a JSON array or JSON Lines")
    if first == "[":
        yield from scan.array()
    else:
        yield from scan.lines()


class _Scan:
    """A window over the text that slides forward and grows only with the row it stands on."""

    def __init__(self, file: str, stream: IO[str]) -> None:
        self._file = file
        self._stream = stream
        self._text = ""
        self._position = 0
        self._line = 1  # of ``_position``
        self._at_end = False
        self._decoder = RowDecoder()

    def skip_space(self) -> str:
        """Moves to the next character that is no white space and returns it, "" at the end."""
        while True:
            match = _SPACE.match(self._text, self._position)
            self._move_to(match.end() if match else self._position)
            if self._position < len(self._text):
                return self._text[self._position]
            if not self._read_on():
                return ""

    def array(self) -> Iterator[Row | BadRow]:
        """Elements with the lines on which they start."""
        self._move_to(self._position + 1)
        num_rows = 0
        while (sign := self.skip_space()) != "]" or num_rows:
            if sign == "":
                raise self._broken("not valid JSON: the array does not end")
            line = self._line
            value, complaint = self._element()
            yield (
                Row(self._file, line, value)
                if complaint is None
                else BadRow(self._file, line, complaint)
            )
            num_rows += 1
            if (sign := self.skip_space()) == "]":
                break
            if sign != ",":
                raise self._broken("not valid JSON: expected ',' or ']' after a row")
            self._move_to(self._position + 1)
        if not num_rows:
            raise self._broken("an empty array; nothing to train on")
        self._move_to(self._position + 1)
        if self.skip_space():
            raise self._broken("text after the closing ']'")

    def lines(self) -> Iterator[Row | BadRow]:
        """One value a line; blank lines are passed over."""
        self._refuse_single_object()
        while (line := self._next_line()) is not None:
            number, self._line = self._line, self._line + 1
            if len(line) > MAX_ROW_CHARS:
                yield BadRow(self._file, number, f"longer than {MAX_ROW_CHARS} characters")
            elif line.strip():
                yield self._row_of(line, number)

    # --- arrays ---

    def _element(self) -> tuple[Any, str | None]:
        while True:
            try:
                value, end, complaint = self._decoder.decode(self._text, self._position)
            except json.JSONDecodeError as error:
                offset = error.pos - self._position
                if not self._is_torn(error) or not self._read_on():
                    self._move_to(self._position + offset)
                    raise self._broken(f"not valid JSON: {error.msg}") from error
            except RecursionError as error:
                raise self._broken("not valid JSON: nested too deeply") from error
            except ValueError as error:  # Python's limit for the digits of one integer
                raise self._broken(f"not valid JSON: {error}") from error
            else:
                if self._is_whole(value, end) or not self._read_on():
                    self._move_to(end)
                    return value, complaint
            if len(self._text) - self._position > MAX_ROW_CHARS:
                raise self._broken(f"a row longer than {MAX_ROW_CHARS} characters")

    def _is_whole(self, value: Any, end: int) -> bool:
        """A number or a word may go on behind the window's edge, and end there as another."""
        if isinstance(value, dict | list | str):
            return True
        return self._text[end : end + 1] in _ENDS

    def _is_torn(self, error: json.JSONDecodeError) -> bool:
        """Whether the element may only be cut off by the window's edge."""
        return (
            error.msg.startswith("Unterminated string")
            or error.pos >= len(self._text) - _LONGEST_TORN
        )

    def _move_to(self, position: int) -> None:
        self._line += self._text.count("\n", self._position, position)
        self._position = position

    def _read_on(self) -> bool:
        """More text behind the window; what lies before the position goes. False at the end.

        Reads at least as much as is there, so that a long row is decoded few times.
        """
        kept = self._text[self._position :]
        more = self._stream.read(max(_CHUNK_CHARS, len(kept)))
        self._text, self._position = kept + more, 0
        return more != ""

    # --- lines ---

    def _refuse_single_object(self) -> None:
        """A pretty-printed object would otherwise give one puzzling error per line."""
        while not (line := self._text[self._position :].lstrip("{ \t\r")) and self._read_on():
            pass
        if line.startswith("\n") and self._text[self._position] == "{":
            raise self._broken("a JSON object over several lines; expected an array or JSON Lines")

    def _next_line(self) -> str | None:
        end = self._text.find("\n", self._position)
        if end >= 0:
            line = self._text[self._position : end]
            self._position = end + 1
            return line
        rest, self._text, self._position = self._text[self._position :], "", 0
        line = rest + self._stream.readline(MAX_ROW_CHARS + 1 - len(rest))
        if line and not line.endswith("\n") and len(line) > MAX_ROW_CHARS:
            while (more := self._stream.readline(_CHUNK_CHARS)) and not more.endswith("\n"):
                pass
        return line or None

    def _row_of(self, line: str, number: int) -> Row | BadRow:
        try:
            start = _SPACE.match(line)
            value, end, complaint = self._decoder.decode(line, start.end() if start else 0)
        except json.JSONDecodeError as error:
            reason = f"not valid JSON: {error.msg} (column {error.pos + 1})"
            return BadRow(self._file, number, reason)
        except RecursionError:
            return BadRow(self._file, number, "not valid JSON: nested too deeply")
        except ValueError as error:
            return BadRow(self._file, number, f"not valid JSON: {error}")
        if line[end:].strip():
            return BadRow(self._file, number, f"not valid JSON: Extra data (column {end + 1})")
        return (
            Row(self._file, number, value)
            if complaint is None
            else BadRow(self._file, number, complaint)
        )

    def _broken(self, reason: str) -> Exception:
        return broken_file(self._file, self._line, reason)
