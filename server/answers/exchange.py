"""One request for an answer from its receipt to its response, as long as somebody waits for it.

Whoever has left or whose time is over costs nothing more, whether the prompt is being tokenised,
the adapter read, the request waits for its turn, or the answer is being generated.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from fastapi import Request
from fastapi.responses import Response

from server.answers.deadline import Deadline
from server.answers.generation import Answer
from server.answers.reader import Patience
from server.answers.streaming import AnswerEvents, Form, first_arrivals, whole_answer
from server.auth import Caller
from server.state import Server

CLIENT_CLOSED_REQUEST = 499  # nginx's word; nobody is there to read it
Accepting = Callable[[], Awaitable[tuple[Answer, Form]]]


@dataclass(frozen=True, slots=True)
class Exchange:
    """What a route needs besides the body. ``who`` names the client in the log."""

    request: Request
    deadline: Deadline
    patience: Patience
    who: str

    @classmethod
    def of(cls, server: Server, request: Request, deadline: Deadline, caller: Caller) -> Exchange:
        """The exchange that a route has with ``caller``."""
        settings, client = server.settings, request.client
        address = f"{client.host}:{client.port}" if client else "an unknown address"
        patience = Patience(settings.max_unread_tokens, settings.stall_s)
        return cls(request, deadline, patience, f"key {caller.key_id or 'none'} at {address}")

    async def respond(self, accepting: Accepting) -> Response:
        """The response to what ``accepting`` gets accepted. Raises what it raises, and ApiError."""
        work = asyncio.create_task(self._response(accepting))
        leaving = asyncio.create_task(_gone(self.request))
        try:
            await asyncio.wait({work, leaving}, return_when=asyncio.FIRST_COMPLETED)
            return work.result() if work.done() else Response(status_code=CLIENT_CLOSED_REQUEST)
        finally:
            leaving.cancel()
            work.cancel()

    async def _response(self, accepting: Accepting) -> Response:
        async with self.deadline.enforced():
            answer, form = await accepting()
        is_begun = False
        try:
            answer.end_after(self.deadline.left_s, self.deadline.passed())
            if not form.is_stream:
                return await whole_answer(answer, form)
            first = await first_arrivals(answer)
            events = AnswerEvents(answer, form, first, self.patience, self.who)
            is_begun = True
            return events
        finally:
            if not is_begun:  # the events close it
                await answer.close()


async def _gone(request: Request) -> None:
    """Returns when the client leaves. The body has been read: only a disconnect can follow."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
