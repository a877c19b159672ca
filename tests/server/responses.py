"""What tests of /v1/responses share: a renderer that remembers, answers that consist of pieces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from server.answers.chat import chat_work
from server.answers.generation import Work
from server.answers.pieces import CallArguments, CallBegun, Piece, Said
from server.answers.responses import work
from tests.server.fakes import ids_of

URL = "/v1/responses"
BASE = "tiny-base"
TOOL: dict[str, Any] = {
    "type": "function",
    "name": "find_order",
    "description": "Where an order is",
    "parameters": {"type": "object", "properties": {"number": {"type": "integer"}}},
    "strict": False,
}


class Recorder:
    """Renders whatever it is given and remembers it."""

    def __init__(self) -> None:
        self.messages: list[list[dict[str, Any]]] = []

    def render_prompt(self, messages: list[dict[str, Any]], **options: Any) -> list[int]:
        self.messages.append(messages)
        return [*ids_of("".join(message["content"] for message in messages)), 2]

    @property
    def last(self) -> list[dict[str, Any]]:
        return self.messages[-1]


@dataclass
class Scripted:
    """Reads an answer as these pieces, one for each token of the engine's, then ends."""

    pieces: Sequence[Piece]
    num_read: int = 0

    def push(self, text: str) -> list[Piece]:
        if not text or self.num_read == len(self.pieces):
            return []
        self.num_read += 1
        return [self.pieces[self.num_read - 1]]

    def finish(self, reason: str) -> list[Piece]:
        return list(self.pieces[self.num_read :])

    def finish_reason(self, reason: str) -> str:
        return reason


@dataclass
class Understanding:
    """What the next answers are read as; of each chat, its tools and their choice."""

    pieces: list[Sequence[Piece]] = field(default_factory=list)
    chats: list[Any] = field(default_factory=list)


def understand(monkeypatch: pytest.MonkeyPatch) -> Understanding:
    """Let the answers to responses be read as told, whatever the engine says."""
    told = Understanding()

    async def understood(server: Any, request: Any, body: Any, ticket: Any) -> Work:
        told.chats.append(body)
        plain = body.model_copy(update={"tools": None, "tool_choice": None})
        made = await chat_work(server, request, plain, ticket)
        pieces = told.pieces.pop(0) if told.pieces else [Said("Hello")]
        return replace(made, parser=lambda: Scripted(pieces))

    monkeypatch.setattr(work, "chat_work", understood)
    return told


CALL = (
    CallBegun(0, "call_1", "find_order"),
    CallArguments(0, '{"number"'),
    CallArguments(0, ":7}"),
)


class NoGrammars:
    """Takes a constraint for granted: the fake engine says what it is told anyway."""

    async def constrain(self, sampling: Any, constraint: Any) -> Any:
        assert constraint is not None
        return sampling
