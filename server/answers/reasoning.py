"""Thoughts: which bases have them, how many tokens they may take, and where they end in an answer.

A base thinks if its chat template knows ``</think>`` and both marks are single tokens. Thoughts
begin in the prompt (R1's) or with an answer's first token (Qwen3's). The line breaks that models
write beside the marks belong to the marks.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from server.answers.pieces import AnswerParser, Piece, Thought
from server.engine.request import Thinking
from server.errors import ApiError

START, END = "<think>", "</think>"
BREAKS = "\r\n"
# Tokens that may be thought for each word of reasoning_effort; None: as many as the model likes.
EFFORTS: dict[str, int | None] = {
    "none": 0,
    "minimal": 256,
    "low": 1024,
    "medium": 4096,
    "high": 16384,
    "xhigh": None,
    "max": None,
}


@dataclass(frozen=True, slots=True)
class ThoughtMarks:
    """The token ids of a base's marks, and of what ends its turns."""

    start_id: int
    end_id: int
    eos_ids: frozenset[int]

    def is_open(self, prompt: Sequence[int]) -> bool:
        """Whether the prompt ends inside thoughts. Those of earlier turns ended with their turn."""
        for token in reversed(prompt):
            if token == self.start_id:
                return True
            if token == self.end_id or token in self.eos_ids:
                return False
        return False


def find_marks(tokenizer: Any, eos_ids: Collection[int]) -> ThoughtMarks | None:
    """The marks of a base that thinks, else None."""
    if END not in str(tokenizer.chat_template):
        return None
    vocab = tokenizer.get_vocab()
    if START not in vocab or END not in vocab:
        return None
    return ThoughtMarks(vocab[START], vocab[END], frozenset(eos_ids))


def thinking_budget(
    marks: ThoughtMarks | None, effort: str | None, budget: int | None
) -> int | None:
    """Tokens that may be thought; None: no limit. Raises ApiError where it cannot be said."""
    if effort is not None and budget is not None:
        message = "Give one of reasoning_effort and thinking_token_budget, not both."
        raise ApiError(400, message, param="thinking_token_budget", code="invalid_combination")
    if marks is not None:
        return EFFORTS[effort] if effort is not None else budget
    if budget is None and effort in (None, "none"):
        return None
    param = "thinking_token_budget" if effort is None else "reasoning_effort"
    message = f"{param}: this base does not think; leave it out."
    raise ApiError(400, message, param=param, code="unsupported_parameter")


def thinking(
    marks: ThoughtMarks | None, prompt: Sequence[int], budget: int | None
) -> Thinking | None:
    """What the engine has to know of an answer's thoughts."""
    if marks is None:
        return None
    return Thinking(marks.start_id, marks.end_id, marks.is_open(prompt), budget)


class ThoughtParser:
    """Thoughts first, and what ``inner`` makes of the text behind them.

    ``is_open``: the prompt ends inside thoughts.
    """

    def __init__(self, inner: AnswerParser, *, is_open: bool) -> None:
        self._inner = inner
        self._text = ""  # not handed on
        self._is_open = is_open
        self._state = self._beginning

    def push(self, text: str) -> list[Piece]:
        self._text += text
        pieces: list[Piece] = []
        while self._state(pieces):
            pass
        return pieces

    def finish(self, reason: str) -> list[Piece]:
        pieces: list[Piece] = []
        if self._state == self._beginning and self._is_open:
            self._state = self._inside
            pieces += self.push("")
        if self._state == self._inside:
            # What is held back: line breaks, and perhaps the beginning of a mark.
            pieces += [Thought(self._text)] if self._text.strip(BREAKS) else []
        elif self._state == self._beginning:
            pieces += self._inner.push(self._text)
        self._text = ""
        return pieces + self._inner.finish(reason)

    def finish_reason(self, reason: str) -> str:
        return self._inner.finish_reason(reason)

    # --- states: each hands on what is clear, and says whether another one may go on ---

    def _beginning(self, pieces: list[Piece]) -> bool:
        """Nothing has come but perhaps the first mark, and line breaks inside the thoughts."""
        if len(self._text) < len(START) and START.startswith(self._text):
            return False
        if self._text.startswith(START):
            self._is_open = True
            self._text = self._text[len(START) :]
        self._state = self._breaks if self._is_open else self._answering
        return True

    def _breaks(self, pieces: list[Piece]) -> bool:
        """Behind the first mark."""
        self._text = self._text.lstrip(BREAKS)
        self._state = self._inside if self._text else self._breaks
        return bool(self._text)

    def _inside(self, pieces: list[Piece]) -> bool:
        at = self._text.find(END)
        upto = _mark_start(self._text) if at < 0 else at
        thought = self._text[:upto].rstrip(BREAKS)
        if thought:
            pieces.append(Thought(thought))
        if at < 0:
            self._text = self._text[len(thought) :]
            return False
        self._text = self._text[at + len(END) :]
        self._state = self._behind
        return True

    def _behind(self, pieces: list[Piece]) -> bool:
        """Behind the last mark."""
        self._text = self._text.lstrip(BREAKS)
        self._state = self._answering if self._text else self._behind
        return bool(self._text)

    def _answering(self, pieces: list[Piece]) -> bool:
        text, self._text = self._text, ""
        pieces += self._inner.push(text)
        return False


def _mark_start(text: str) -> int:
    """Where the beginning of the last mark is all that is left of the text, else its end."""
    for length in range(min(len(END) - 1, len(text)), 0, -1):
        if text.endswith(END[:length]):
            return len(text) - length
    return len(text)
