"""A request for an answer and its response, for as long as somebody waits for it.

Whoever has left costs nothing more, whether the prompt is being tokenised, the adapter read, the
request waits for its turn, or the answer is being generated.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from fastapi import Request
from fastapi.responses import Response

from server.answers.generation import Answer
from server.answers.reader import Patience
from server.answers.streaming import AnswerEvents, AnswerForm, first_arrivals, whole_answer
from server.auth import Caller
from server.state import Server

CLIENT_CLOSED_REQUEST = 499  # nginx's word; nobody is there to read it
Accepting = Callable[[], Awaitable[tuple[Answer, AnswerForm]]]


async def respond(
    server: Server, request: Request, caller: Caller, accepting: Accepting
) -> Response:
    """The response to what ``accepting`` gets accepted; it is cancelled if the client leaves.

    Raises:
        ApiError: what ``accepting`` raises, or what failed before the first byte.
    """
    work = asyncio.create_task(_response(server, _name(request, caller), accepting))
    leaving = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({work, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return work.result() if work.done() else Response(status_code=CLIENT_CLOSED_REQUEST)
    finally:
        leaving.cancel()
        work.cancel()


async def _response(server: Server, who: str, accepting: Accepting) -> Response:
    answer, form = await accepting()
    try:
        if not form.is_stream:
            response = await whole_answer(answer, form)
            await answer.close()
            return response
        first = await first_arrivals(answer)
        patience = Patience(server.settings.max_unread_tokens, server.settings.stall_s)
        return AnswerEvents(answer, form, first, patience, who)  # which closes the answer
    except BaseException:
        await answer.close()
        raise


async def _gone(request: Request) -> None:
    """Returns when the client leaves. The body has been read: only a disconnect can follow."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _name(request: Request, caller: Caller) -> str:
    """The client for the log."""
    client = request.client
    address = "an unknown address" if client is None else f"{client.host}:{client.port}"
    return f"key {caller.key_id or 'none'} at {address}"
