"""The asyncio end of one answer: deltas come from the engine thread, a coroutine consumes them."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence

from server.engine.request import Delta

logger = logging.getLogger(__name__)


class AnswerStream(AsyncIterator[Delta]):
    """Deltas of one request in generation order; the last one has a ``finish_reason``.

    Leaving early is `stop`, which ends the generation. Everything is called on the event loop.
    """

    def __init__(self, request_id: str, abort: Callable[[str], None]) -> None:
        self.request_id = request_id
        self.loop = asyncio.get_running_loop()
        self._abort = abort
        self._deltas: deque[Delta] = deque()
        self._arrived = asyncio.Event()
        self._listener: Callable[[Delta], None] | None = None
        self._is_finished = False  # the last delta was consumed, or nobody wants it
        self._has_last = False  # the last delta has arrived

    def push(self, delta: Delta) -> None:
        """Called in generation order."""
        self._has_last |= delta.finish_reason is not None
        if self._is_finished:
            return
        self._deltas.append(delta)
        self._arrived.set()
        if self._listener is not None:
            self._listener(delta)

    def listen(self, listener: Callable[[Delta], None]) -> None:
        """Call ``listener`` with each delta that arrives, at first with those that wait already."""
        self._listener = listener
        for delta in self._deltas:
            listener(delta)

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
        """Everything that has arrived and was not consumed."""
        ready = list(self._deltas)
        self._deltas.clear()
        self._is_finished |= bool(ready) and ready[-1].finish_reason is not None
        return ready

    def stop(self) -> None:
        """End the generation if it still runs. Safe to call at any time, also twice."""
        if not self._has_last and not self._is_finished:
            self._abort(self.request_id)
        self._is_finished = True
        self._deltas.clear()


def publish(deltas: Sequence[tuple[AnswerStream, Delta]]) -> None:
    """Hand a step's deltas over from the engine thread, one wake-up per event loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[AnswerStream, Delta]]] = {}
    for stream, delta in deltas:
        by_loop.setdefault(stream.loop, []).append((stream, delta))
    for loop, items in by_loop.items():
        try:
            loop.call_soon_threadsafe(_deliver, items)
        except RuntimeError:  # the loop is closed: nobody is left to read
            logger.debug("dropped %d deltas of a closed event loop", len(items))


def _deliver(items: Sequence[tuple[AnswerStream, Delta]]) -> None:
    for stream, delta in items:
        stream.push(delta)
