"""Answers as they are sent: server-sent events, or one JSON body.

What fails before the first byte has its true status, so that OpenAI's client tries again by itself.
A failure after it is an event ``data: {"error": …}`` and the end of the stream without ``[DONE]``,
which OpenAI's client raises as APIError.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

from fastapi.responses import Response
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.types import Receive, Scope, Send

from server.answers.generation import Answer, Arrived
from server.answers.pieces import AnswerParser, ParserFactory, PlainParser, read
from server.answers.reader import Patience, Reader
from server.answers.wire import DONE, Choice, Chunks, Wire, body, encode
from server.connection import Line
from server.errors import ApiError

log = logging.getLogger("loraloop.server")

# A busy server's queue is mostly shorter; clients and proxies wait longer for a response to begin.
HOLD_S = 5.0
PING_S = 15.0


@dataclass(frozen=True, slots=True)
class Form:
    """How an answer is to be written."""

    wire: Wire
    end_tokens: frozenset[int]
    is_stream: bool
    has_usage: bool = False  # a last chunk of it; a whole body always has it
    parser: ParserFactory = PlainParser  # makes one for each choice


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
        self, answer: Answer, form: Form, first: Arrived, patience: Patience, who: str
    ) -> None:
        self._answer = answer
        self._patience = patience
        self._who = who
        super().__init__(
            _events(answer, form, first),
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


async def _events(answer: Answer, form: Form, first: Arrived) -> AsyncIterator[bytes]:
    chunks = Chunks(answer, form.wire, form.has_usage)
    parsers = [form.parser() for _ in answer.streams]
    openings = [form.wire.opening(index) for index in range(len(answer.streams))]
    event = b"".join(chunks.of(choice) for choice in openings if choice is not None)
    arrived = first
    try:
        while True:
            event += b"".join(_chunks(chunks, form, parsers, arrived))
            if event:
                yield event
            event = b""
            arrived = await answer.arrivals()
            if not arrived:
                break
    except ApiError as error:
        yield _error_event(error)
    except Exception:  # the last place that can still tell the client
        log.exception("the stream of %s broke", answer.id)
        answer.fail()
        yield _error_event(ApiError(500, "The stream broke on the server.", code="internal_error"))
    else:
        yield chunks.usage(answer) + DONE if form.has_usage else DONE


def _chunks(
    chunks: Chunks, form: Form, parsers: list[AnswerParser], arrived: Arrived
) -> Iterator[bytes]:
    for index, delta in arrived:
        part = read(parsers[index], delta, form.end_tokens)
        for choice in form.wire.part(index, part):
            yield chunks.of(choice)
        if part.finish_reason is not None:
            yield chunks.of(form.wire.ending(index, part.finish_reason))


def _error_event(error: ApiError) -> bytes:
    return b"data: " + encode(error.body()).encode() + b"\n\n"


async def whole_answer(answer: Answer, form: Form) -> Response:
    """The answer as one JSON body, once it has ended. Raises ApiError."""
    choices = [Choice() for _ in answer.streams]
    parsers = [form.parser() for _ in answer.streams]
    while arrived := await answer.arrivals():
        for index, delta in arrived:
            choices[index].add(read(parsers[index], delta, form.end_tokens))
    content = encode(body(answer, form.wire, choices))
    return Response(content, media_type="application/json", headers=answer.headers)
