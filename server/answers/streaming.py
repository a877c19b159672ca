"""Answers as they are sent: server-sent events, or one JSON body.

What fails before the first byte has its true status, so that OpenAI's client tries again by itself.
A failure after it is the last event; that of completions, ``data: {"error": …}`` without
``[DONE]``, OpenAI's client raises as APIError. What the bytes are is a form's affair.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Protocol

from fastapi.responses import Response
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.types import Receive, Scope, Send

from server.answers.generation import Answer, Arrived
from server.answers.pieces import ParserFactory, PlainParser, read
from server.answers.reader import Patience, Reader
from server.answers.wire import DONE, Choice, Chunks, Wire, body, encode
from server.connection import Line
from server.errors import ApiError

log = logging.getLogger("loraloop.server")

# A busy server's queue is mostly shorter; clients and proxies wait longer for a response to begin.
HOLD_S = 5.0
PING_S = 15.0


class Writer(Protocol):
    """Writes the stream of one answer. Called in this order; failing may come at any time."""

    def opening(self) -> bytes:
        """What is sent on acceptance."""

    def add(self, arrived: Arrived) -> bytes:
        """What has arrived; may be nothing."""

    def ending(self) -> bytes:
        """What follows once all has been added."""

    def failing(self, error: ApiError) -> bytes:
        """What is sent instead of the rest."""


class Collector(Protocol):
    """Gathers one answer that is not streamed."""

    def add(self, arrived: Arrived) -> None: ...

    def body(self) -> bytes:
        """The JSON, once all has been added."""


class AnswerForm(Protocol):
    """How an answer is to be written."""

    @property
    def is_stream(self) -> bool: ...

    def writer(self, answer: Answer) -> Writer: ...

    def collector(self, answer: Answer) -> Collector: ...


@dataclass(frozen=True, slots=True)
class Form:
    """The form of completions, of chats or plain ones: choices."""

    wire: Wire
    end_tokens: frozenset[int]
    is_stream: bool
    has_usage: bool = False  # a last chunk of it; a whole body always has it
    parser: ParserFactory = PlainParser  # makes one for each choice

    def writer(self, answer: Answer) -> Writer:
        return _ChunkWriter(answer, self)

    def collector(self, answer: Answer) -> Collector:
        return _ChoiceCollector(answer, self)


async def first_arrivals(answer: Answer) -> Arrived:
    """The first deltas of an answer; none if it has none yet after HOLD_S.

    Raises:
        ApiError: the answer failed while nothing was sent.
    """
    arrived: Arrived = []
    try:
        async with asyncio.timeout(HOLD_S):
            arrived = await answer.arrivals()
    except TimeoutError:
        pass
    if answer.failure is not None:
        raise answer.failure
    return arrived


class AnswerEvents(EventSourceResponse):
    """An answer as server-sent events, kept alive by comments; it closes the answer.

    ``first`` are the deltas taken so far. ``who`` names the client in the log.
    """

    def __init__(
        self, answer: Answer, form: AnswerForm, first: Arrived, patience: Patience, who: str
    ) -> None:
        self._answer = answer
        self._patience = patience
        self._who = who
        super().__init__(
            _events(answer, form.writer(answer), first),
            headers=answer.headers,
            ping=PING_S,
            ping_message_factory=lambda: ServerSentEvent(comment="ping", sep="\n"),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        reader = Reader(self._answer, send, Line.of(scope), self._patience, self._who)
        try:
            with reader.watched():
                await super().__call__(scope, receive, reader.send)
        finally:
            # Here and not in the generator: one that was never begun runs no ``finally``.
            await self._answer.close()


async def _events(answer: Answer, writer: Writer, first: Arrived) -> AsyncIterator[bytes]:
    event = writer.opening()
    arrived = first
    try:
        while True:
            event += writer.add(arrived)
            if event:
                yield event
            event = b""
            arrived = await answer.arrivals()
            if not arrived:
                break
        event = writer.ending()
    except ApiError as error:
        yield writer.failing(error)
    except Exception:  # the last place that can still tell the client
        log.exception("the stream of %s broke", answer.id)
        answer.fail()
        broken = ApiError(500, "The stream broke on the server.", code="internal_error")
        yield writer.failing(broken)
    else:
        yield event


class _ChunkWriter:
    def __init__(self, answer: Answer, form: Form) -> None:
        self._answer = answer
        self._form = form
        self._chunks = Chunks(answer, form.wire, form.has_usage)
        self._parsers = [form.parser() for _ in answer.streams]

    def opening(self) -> bytes:
        openings = map(self._form.wire.opening, range(len(self._parsers)))
        return b"".join(self._chunks.of(choice) for choice in openings if choice is not None)

    def add(self, arrived: Arrived) -> bytes:
        return b"".join(self._added(arrived))

    def ending(self) -> bytes:
        return self._chunks.usage(self._answer) + DONE if self._form.has_usage else DONE

    def failing(self, error: ApiError) -> bytes:
        return b"data: " + encode(error.body()).encode() + b"\n\n"

    def _added(self, arrived: Arrived) -> Iterator[bytes]:
        wire = self._form.wire
        for index, delta in arrived:
            part = read(self._parsers[index], delta, self._form.end_tokens)
            for choice in wire.part(index, part):
                yield self._chunks.of(choice)
            if part.finish_reason is not None:
                yield self._chunks.of(wire.ending(index, part.finish_reason))


class _ChoiceCollector:
    def __init__(self, answer: Answer, form: Form) -> None:
        self._answer = answer
        self._form = form
        self._choices = [Choice() for _ in answer.streams]
        self._parsers = [form.parser() for _ in answer.streams]

    def add(self, arrived: Arrived) -> None:
        for index, delta in arrived:
            self._choices[index].add(read(self._parsers[index], delta, self._form.end_tokens))

    def body(self) -> bytes:
        return encode(body(self._answer, self._form.wire, self._choices)).encode()


async def whole_answer(answer: Answer, form: AnswerForm) -> Response:
    """The answer as one JSON body, once it has ended. Raises ApiError."""
    collector = form.collector(answer)
    while arrived := await answer.arrivals():
        collector.add(arrived)
    return Response(collector.body(), media_type="application/json", headers=answer.headers)
