"""Calls out of an answer's text, as it comes.

What is no call of an offered function stays content: an unknown name, broken JSON, a mark in
running text. Spaces beside a call belong to its marks. Where a grammar makes sure that what begins
as a call is one, its arguments are handed on as they come, and an answer that is cut off inside
them ends with a cut call and its own finish_reason ("length", "stop"), as OpenAI's does, one that
is cut off before them shows nothing of the call; without a
grammar a call is held back until it is whole, and one that never becomes whole is content.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Collection

from server.answers.pieces import CallArguments, CallBegun, Piece, Said
from server.answers.tools.formats import Reading

_STRUCTURE = re.compile(r'["{}\[\]]')
_IN_STRING = re.compile(r'["\\]')


def new_call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"


class _Object:
    """Where a JSON object that comes in parts ends."""

    def __init__(self) -> None:
        self._depth = 0
        self._is_string = False
        self._at = 0

    def end(self, text: str, start: int) -> int | None:
        """The index behind it, None if it has not come; ``text`` from ``start`` on only grows."""
        at = max(self._at, start)
        while at < len(text):
            found = (_IN_STRING if self._is_string else _STRUCTURE).search(text, at)
            if found is None:
                at = len(text)
                break
            sign, at = found[0], found.end()
            if sign == "\\":
                at += 1  # the escaped character, which may not have come yet
            elif sign == '"':
                self._is_string = not self._is_string
            else:
                self._depth += 1 if sign in "{[" else -1
                if self._depth == 0:
                    return at
        self._at = at
        return None


class CallParser:
    """Text and calls of ``names``. ``is_certain``: a grammar makes sure that calls are whole.

    ``word`` is the finish_reason of an answer with calls.
    """

    def __init__(
        self,
        reading: Reading,
        names: Collection[str],
        *,
        is_certain: bool,
        word: str = "tool_calls",
        new_id: Callable[[], str] = new_call_id,
    ) -> None:
        self._reading = reading
        self._names = names
        self._is_certain = is_certain
        self._word = word
        self._new_id = new_id
        self._text = ""  # not handed on
        self._from = 0  # no call begins before it
        self._num_calls = 0
        self._is_text = False  # something was said, so nothing can begin where there is no mark
        self._is_cut = False
        self._start = 0  # of the call in the text, behind spaces
        self._arguments = 0  # where they begin in the text
        self._sent = 0  # up to where they were handed on
        self._begun = CallBegun(0, "", "")
        self._object = _Object()
        self._state = self._outside

    def push(self, text: str) -> list[Piece]:
        self._text += text
        pieces: list[Piece] = []
        while self._state(pieces):
            pass
        return pieces

    def finish(self, reason: str) -> list[Piece]:
        pieces: list[Piece] = []
        while self._state in (self._inside, self._behind):
            if self._is_certain:
                self._is_cut = self._state == self._inside
                self._text = ""
                return pieces
            self._reject()
            pieces += self.push("")
        if self._state == self._beyond and (gap := self._reading.gap.match(self._text, 0)):
            self._text = self._text[gap.end() :]
        if not (self._is_certain and self._is_mark_open()):
            _say(pieces, self._text)
        self._text = ""
        return pieces

    def finish_reason(self, reason: str) -> str:
        is_called = reason == "stop" and self._num_calls and not self._is_cut
        return self._word if is_called else reason

    # --- states: each hands on what is clear, and says whether another one may go on ---

    def _outside(self, pieces: list[Piece]) -> bool:
        """In running text."""
        at, head = self._find_head()
        before = self._text[:at].rstrip()
        self._is_text = self._is_text or bool(before)
        _say(pieces, before)
        self._text = self._text[len(before) :]
        self._from = max(0, self._from - len(before))
        if head is None:
            return False
        self._start = at - len(before)
        self._begun = CallBegun(self._num_calls, self._new_id(), head["name"])
        self._arguments = self._sent = head.end() - 1 - len(before)
        self._object = _Object()
        self._state = self._inside
        if self._is_certain:
            self._num_calls += 1
            pieces.append(self._begun)
        return True

    def _inside(self, pieces: list[Piece]) -> bool:
        """In a call's arguments."""
        end = self._object.end(self._text, self._arguments)
        upto = len(self._text) if end is None else end
        if self._is_certain and upto > self._sent:
            pieces.append(CallArguments(self._begun.index, self._text[self._sent : upto]))
        self._sent = upto
        if end is None:
            return False
        self._state = self._behind
        return True

    def _behind(self, pieces: list[Piece]) -> bool:
        """Between a call's arguments and its end."""
        end = self._reading.tail.match(self._text, self._sent)
        if end is None and self._reading.tail.may_come(self._text, self._sent):
            return False
        if not self._is_certain:
            arguments = self._text[self._arguments : self._sent]
            if end is None or not _is_json(arguments):
                self._reject()
                return True
            self._num_calls += 1
            pieces += [self._begun, CallArguments(self._begun.index, arguments)]
        self._text = self._text[self._sent if end is None else end.end() :]
        self._from, self._is_text = 0, False
        self._state = self._beyond
        return True

    def _beyond(self, pieces: list[Piece]) -> bool:
        """Behind a call."""
        if self._reading.gap.may_come(self._text, 0):
            return False
        if gap := self._reading.gap.match(self._text, 0):
            self._text = self._text[gap.end() :]
        self._state = self._outside
        return True

    # --- what they need ---

    def _find_head(self) -> tuple[int, re.Match[str] | None]:
        """Where a call begins or may begin, else the text's end; its head if it is whole."""
        at = self._from
        while (at := self._next_start(at)) < len(self._text):
            for head in self._reading.heads:
                match = head.match(self._text, at)
                if match is not None and match["name"] in self._names:
                    return at, match
                if match is None and head.may_come(self._text, at):
                    return at, None
            at += 1
            self._from = at
        return at, None

    def _next_start(self, at: int) -> int:
        if self._reading.mark:
            found = self._text.find(self._reading.mark[0], at)
            return len(self._text) if found < 0 else found
        first = len(self._text) - len(self._text.lstrip())
        return len(self._text) if self._is_text or at > first else first

    def _is_mark_open(self) -> bool:
        """Whether what is held back would have become a call, had the answer not been cut off."""
        marks = filter(None, (self._reading.mark, self._reading.further))
        return self._text.lstrip().startswith(tuple(marks))

    def _reject(self) -> None:
        """What was held back is no call."""
        self._from = self._start + 1
        self._state = self._outside


def _say(pieces: list[Piece], text: str) -> None:
    if text:
        pieces.append(Said(text))


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
