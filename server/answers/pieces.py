"""What an answer consists of: text, thoughts, calls of functions. Knows no wire format.

A parser reads the text that the engine makes, as it comes, and says which is which. There is one
for each choice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from server.engine.request import Delta, TokenLogprob


@dataclass(frozen=True, slots=True)
class Said:
    """Text for the reader."""

    text: str


@dataclass(frozen=True, slots=True)
class Thought:
    """Text of the model for itself."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegun:
    """The ``index``-th call of this choice begins."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """More of the JSON text of the ``index``-th call's arguments."""

    index: int
    text: str


Piece = Said | Thought | CallBegun | CallArguments


class AnswerParser(Protocol):
    """Pieces out of text. What may be the beginning of a mark is held back until it is clear."""

    def push(self, text: str) -> list[Piece]:
        """What has become clear with ``text``."""

    def finish(self, reason: str) -> list[Piece]:
        """What was held back, once the answer has ended for ``reason``. Called once."""

    def finish_reason(self, reason: str) -> str:
        """OpenAI's word for how the choice ended, after ``finish``; "stop" may be a call."""


class PlainParser:
    """All is text."""

    def push(self, text: str) -> list[Piece]:
        return [Said(text)] if text else []

    def finish(self, reason: str) -> list[Piece]:
        return []

    def finish_reason(self, reason: str) -> str:
        return reason


ParserFactory = Callable[[], AnswerParser]


@dataclass(frozen=True, slots=True)
class Part:
    """What one delta adds to a choice."""

    pieces: tuple[Piece, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()
    finish_reason: str | None = None

    @property
    def is_empty(self) -> bool:
        return not (self.pieces or self.logprobs or self.prompt_logprobs)


def read(parser: AnswerParser, delta: Delta, end_tokens: frozenset[int]) -> Part:
    """The delta, understood."""
    delta = _without_end_token(delta, end_tokens)
    pieces, reason = parser.push(delta.text), delta.finish_reason
    if reason is None:
        return Part(tuple(pieces), delta.logprobs, delta.prompt_logprobs)
    pieces = pieces + parser.finish(reason)
    word = parser.finish_reason(reason)
    return Part(tuple(pieces), delta.logprobs, delta.prompt_logprobs, word)


def _without_end_token(delta: Delta, end_tokens: frozenset[int]) -> Delta:
    """The delta without the logprob of the token that only ended it, as OpenAI's answers."""
    is_ended = delta.finish_reason == "stop" and delta.logprobs
    if is_ended and delta.logprobs[-1].token_id in end_tokens:
        return replace(delta, logprobs=delta.logprobs[:-1])
    return delta
