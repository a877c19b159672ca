"""The asyncio end of one answer: deltas come from the engine thread, a coroutine consumes them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable

from server.engine.request import Delta


class AnswerStream(AsyncIterator[Delta]):
    """Deltas of one request in generation order; the last one has a ``finish_reason``.

    Leaving early is `aclose`, which stops the generation.
    """

    def __init__(self, request_id: str, abort: Callable[[str], None]) -> None:
        self.request_id = request_id
        self.loop = asyncio.get_running_loop()
        self._abort = abort
        self._deltas: deque[Delta] = deque()
        self._arrived = asyncio.Event()
        self._is_finished = False  # the last delta was consumed, or nobody wants it
        self._has_last = False  # the last delta has arrived

    def push(self, delta: Delta) -> None:
        """Called on the event loop, in generation order."""
        self._deltas.append(delta)
        self._has_last |= delta.finish_reason is not None
        self._arrived.set()

    async def __anext__(self) -> Delta:
        if self._is_finished:
            raise StopAsyncIteration
        while not self._deltas:
            self._arrived.clear()
            await self._arrived.wait()
        delta = self._deltas.popleft()
        self._is_finished = delta.finish_reason is not None
        return delta

    def take_ready(self) -> list[Delta]:
        """Whatever else has already arrived, for a consumer that lags behind."""
        ready = list(self._deltas)
        self._deltas.clear()
        self._is_finished |= bool(ready) and ready[-1].finish_reason is not None
        return ready

    async def aclose(self) -> None:
        """Stop the generation if it still runs. Safe to call at any time, also twice."""
        if not self._has_last and not self._is_finished:
            self._abort(self.request_id)
        self._is_finished = True
        self._deltas.clear()
