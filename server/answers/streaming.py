"""Answers on their way to the client: server-sent events, or one JSON body.

Either way the answer is closed when the client has it or has gone, so that no token is generated
for nobody. A failure after the first byte is an event ``data: {"error": …}`` and the end of the
stream without ``[DONE]``, which OpenAI's client raises as APIError.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from dataclasses import replace
from typing import Any

from fastapi import Request
from fastapi.responses import Response
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.types import Receive, Scope, Send

from server.answers.generation import Answer
from server.answers.wire import DONE, Choice, Chunks, Wire, body, encode
from server.engine.request import Delta
from server.errors import ApiError

log = logging.getLogger("loraloop.server")

PING_S = 15
CLIENT_CLOSED_REQUEST = 499  # nginx's word; nobody is there to read it
EndTokens = frozenset[int]


class AnswerEvents(EventSourceResponse):
    """An answer as server-sent events. The first chunk goes out before the first token exists."""

    def __init__(self, answer: Answer, wire: Wire, end_tokens: EndTokens, has_usage: bool) -> None:
        self._answer = answer
        super().__init__(
            _events(answer, wire, end_tokens, has_usage),
            headers=answer.headers,
            ping=PING_S,
            ping_message_factory=lambda: ServerSentEvent(comment="ping", sep="\n"),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            # Here and not in the generator: one that was never begun runs no ``finally``.
            await self._answer.close()


async def _events(
    answer: Answer, wire: Wire, end_tokens: EndTokens, has_usage: bool
) -> AsyncIterator[bytes]:
    chunks = Chunks(answer, wire, has_usage)
    openings = [wire.opening(index) for index in range(len(answer.streams))]
    if first := b"".join(chunks.of(choice) for choice in openings if choice is not None):
        yield first
    try:
        async for index, delta in answer.deltas():
            delta = without_end_token(delta, end_tokens)
            event = b""
            if delta.text or delta.token_ids:
                event = chunks.of(wire.piece(index, delta))
            if delta.finish_reason is not None:
                event += chunks.of(wire.ending(index, delta.finish_reason))
            if event:
                yield event
    except ApiError as error:
        yield _error_event(error)
    except Exception:  # the last place that can still tell the client
        log.exception("the stream of %s broke", answer.id)
        answer.fail()
        yield _error_event(ApiError(500, "The stream broke on the server.", code="internal_error"))
    else:
        yield chunks.usage(answer) + DONE if has_usage else DONE


def _error_event(error: ApiError) -> bytes:
    return b"data: " + encode(error.body()).encode() + b"\n\n"


async def answer_whole(
    request: Request, answer: Answer, wire: Wire, end_tokens: EndTokens
) -> Response:
    """The answer as one JSON body; generation stops when the client leaves before."""
    try:
        choices = await _unless_gone(request, _collect(answer, end_tokens))
    finally:
        await answer.close()
    if choices is None:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    content = encode(body(answer, wire, choices))
    return Response(content, media_type="application/json", headers=answer.headers)


async def _collect(answer: Answer, end_tokens: EndTokens) -> list[Choice]:
    choices = [Choice() for _ in answer.streams]
    async for index, delta in answer.deltas():
        choices[index].add(without_end_token(delta, end_tokens))
    return choices


async def _unless_gone(
    request: Request, collecting: Coroutine[Any, Any, list[Choice]]
) -> list[Choice] | None:
    """The result of ``collecting``, or None once the client has closed its connection."""
    work = asyncio.create_task(collecting)
    leaving = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({work, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return await work if work.done() else None
    finally:
        leaving.cancel()
        work.cancel()


async def _gone(request: Request) -> None:
    """Returns when the client leaves. The body has been read: only a disconnect can follow."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def without_end_token(delta: Delta, end_tokens: EndTokens) -> Delta:
    """The delta without the logprob of the token that only ended it, as OpenAI's answers."""
    is_ended = delta.finish_reason == "stop" and delta.logprobs
    if is_ended and delta.logprobs[-1].token_id in end_tokens:
        return replace(delta, logprobs=delta.logprobs[:-1])
    return delta
