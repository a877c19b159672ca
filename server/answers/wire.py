"""OpenAI's JSON for answers: whole bodies and stream chunks. ``completion_wire`` is the plain one.

Knows no HTTP. A chunk is bytes ready to be sent (``data: {…}\\n\\n``): the part that all chunks of
an answer share is encoded once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from server.answers.generation import Answer
from server.answers.pieces import CallArguments, CallBegun, Part, Piece, Said, Thought
from server.answers.token_text import TokenText
from server.engine.request import TokenLogprob

DONE = b"data: [DONE]\n\n"
LEAST_LOGPROB = -9999.0  # JSON has no -Infinity; OpenAI's own floor

encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


@dataclass(slots=True)
class Call:
    """One call of a function, collected."""

    id: str
    name: str
    arguments: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Choice:
    """One finished answer, collected."""

    texts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()
    finish_reason: str = ""

    def add(self, part: Part) -> None:
        for piece in part.pieces:
            self._add(piece)
        self.logprobs.extend(part.logprobs)
        if part.prompt_logprobs:
            self.prompt_logprobs = part.prompt_logprobs
        if part.finish_reason is not None:
            self.finish_reason = part.finish_reason

    def _add(self, piece: Piece) -> None:
        match piece:
            case Said(text):
                self.texts.append(text)
            case Thought(text):
                self.thoughts.append(text)
            case CallBegun(_, id_, name):
                self.calls.append(Call(id_, name))
            case CallArguments(index, text):
                self.calls[index].arguments.append(text)

    @property
    def text(self) -> str:
        return "".join(self.texts)


class Wire(Protocol):
    """How one kind of completion looks."""

    object_name: str
    chunk_name: str

    def opening(self, index: int) -> dict[str, Any] | None:
        """The choice of the chunk that is sent on acceptance, if there is one."""

    def part(self, index: int, part: Part) -> Iterator[dict[str, Any]]:
        """The choices of the chunks with what is new, one each."""

    def ending(self, index: int, finish_reason: str) -> dict[str, Any]:
        """The choice of a choice's last chunk."""

    def whole(self, index: int, choice: Choice) -> dict[str, Any]:
        """One choice of an answer that is not streamed."""


class ChatWire:
    """/v1/chat/completions. ``tokens`` is None where no logprobs were asked for."""

    object_name = "chat.completion"
    chunk_name = "chat.completion.chunk"

    def __init__(self, tokens: TokenText | None) -> None:
        self._tokens = tokens

    def opening(self, index: int) -> dict[str, Any] | None:
        return _chat_choice(index, {"role": "assistant", "content": ""})

    def part(self, index: int, part: Part) -> Iterator[dict[str, Any]]:
        logprobs = self._logprobs(part.logprobs) if part.logprobs else None
        pieces = part.pieces
        if not pieces and logprobs is not None:
            pieces = (Said(""),)
        for piece in pieces:
            yield _chat_choice(index, _chat_delta(piece), logprobs)
            logprobs = None  # said once

    def ending(self, index: int, finish_reason: str) -> dict[str, Any]:
        return _chat_choice(index, {}, None, finish_reason)

    def whole(self, index: int, choice: Choice) -> dict[str, Any]:
        return {
            "index": index,
            "message": _chat_message(choice),
            "logprobs": self._logprobs(choice.logprobs),
            "finish_reason": choice.finish_reason,
        }

    def _logprobs(self, logprobs: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        if self._tokens is None:
            return None
        content = []
        for one in logprobs:
            entry = self._entry(one.token_id, one.logprob)
            entry["top_logprobs"] = [self._entry(token, value) for token, value in one.top]
            content.append(entry)
        return {"content": content, "refusal": None}

    def _entry(self, token_id: int, logprob: float) -> dict[str, Any]:
        assert self._tokens is not None
        text, raw = self._tokens.of(token_id)
        return {"token": text, "logprob": finite(logprob), "bytes": list(raw)}


def _chat_delta(piece: Piece) -> dict[str, Any]:
    match piece:
        case Said(text):
            return {"content": text}
        case Thought(text):
            return {"reasoning_content": text}
        case CallBegun(index, id_, name):
            function = {"name": name, "arguments": ""}
            call = {"index": index, "id": id_, "type": "function", "function": function}
            return {"tool_calls": [call]}
        case CallArguments(index, text):
            return {"tool_calls": [{"index": index, "function": {"arguments": text}}]}


def _chat_message(choice: Choice) -> dict[str, Any]:
    """``content`` is null where there is nothing but calls, as in OpenAI's answers."""
    content = None if choice.calls and not choice.texts else choice.text
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    if choice.thoughts:
        message["reasoning_content"] = "".join(choice.thoughts)
    if choice.calls:
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": "".join(call.arguments)},
            }
            for call in choice.calls
        ]
    return message


def _chat_choice(
    index: int,
    delta: dict[str, Any],
    logprobs: dict[str, Any] | None = None,
    finish_reason: str | None = None,
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}


class Chunks:
    """The stream chunks of one answer."""

    def __init__(self, answer: Answer, wire: Wire, has_usage: bool) -> None:
        head = _head(answer, wire.chunk_name)
        self._head = b"data: " + encode(head)[:-1].encode() + b',"choices":['
        self._tail = b'],"usage":null}\n\n' if has_usage else b"]}\n\n"

    def of(self, choice: dict[str, Any]) -> bytes:
        """One chunk with one choice."""
        return self._head + encode(choice).encode() + self._tail

    def usage(self, answer: Answer) -> bytes:
        """The chunk without choices that ends a stream with usage."""
        return self._head + b'],"usage":' + encode(answer.usage()).encode() + b"}\n\n"


def body(answer: Answer, wire: Wire, choices: Sequence[Choice]) -> dict[str, Any]:
    """The JSON of an answer that is not streamed."""
    whole = [wire.whole(index, choice) for index, choice in enumerate(choices)]
    return {**_head(answer, wire.object_name), "choices": whole, "usage": answer.usage()}


def _head(answer: Answer, object_name: str) -> dict[str, Any]:
    return {
        "id": answer.id,
        "object": object_name,
        "created": answer.created,
        "model": answer.model,
        "system_fingerprint": answer.fingerprint,
    }


def finite(logprob: float) -> float:
    """As JSON can hold it."""
    return max(logprob, LEAST_LOGPROB)
