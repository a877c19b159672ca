"""The client's end of a stream, and the end of patience with one who does not read.

While a client does not read, its answer goes on and piles up. Both the pile and the time are
bounded; beyond, generation stops and the connection ends. Nobody else waits meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from starlette.types import Message, Send

from server.answers.generation import Answer
from server.connection import Line
from server.errors import ApiError

log = logging.getLogger("loraloop.server")

LINGER_S = 10.0  # for the error event, should the client read again
LOOKS_PER_STALL = 8


@dataclass(frozen=True, slots=True)
class Patience:
    """The fields are settings of the same names."""

    max_unread_tokens: int
    stall_s: float


class Reader:
    """Sends on behalf of one answer. ``who`` names the client in the log."""

    def __init__(
        self, answer: Answer, send: Send, line: Line | None, patience: Patience, who: str
    ) -> None:
        self._answer = answer
        self._send = send
        self._line = line
        self._patience = patience
        self._who = who
        self._loop = asyncio.get_running_loop()
        self._num_sending = 0  # a chunk, and a comment beside it
        self._taken_at = 0.0  # when the client was last seen reading; while something is sent
        self._unread_bytes = 0  # then
        self._next_look: asyncio.TimerHandle
        self._is_dropped = False

    async def send(self, message: Message) -> None:
        if not self._num_sending:
            self._taken_at = self._loop.time()
            self._unread_bytes = 1 << 62
        self._num_sending += 1
        try:
            await self._send(message)
        finally:
            self._num_sending -= 1

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Drop the client while inside, if it must be."""
        self._answer.on_arrival = self._count_unread
        self._look_later()
        try:
            yield
        finally:
            self._answer.on_arrival = None
            self._next_look.cancel()

    def _count_unread(self) -> None:
        # Only behind a ``send`` that waits: a slow event loop is not the client's fault.
        if self._num_sending and self._answer.num_unread > self._patience.max_unread_tokens:
            self._drop("it reads too slowly")

    def _look_later(self) -> None:
        delay_s = self._patience.stall_s / LOOKS_PER_STALL
        self._next_look = self._loop.call_later(delay_s, self._look)

    def _look(self) -> None:
        self._look_later()
        if not self._num_sending:
            return
        unread_bytes, now = self._count_bytes(), self._loop.time()
        if unread_bytes < self._unread_bytes:
            self._unread_bytes, self._taken_at = unread_bytes, now
        elif now - self._taken_at >= self._patience.stall_s:
            self._drop(f"it has read nothing for {self._patience.stall_s:g} s")

    def _count_bytes(self) -> int:
        return 0 if self._line is None else self._line.unread_bytes()

    def _drop(self, why: str) -> None:
        if self._is_dropped:
            return
        self._is_dropped = True
        log.warning(
            "answer %s for %s was dropped: %s (%d tokens and %d bytes unread)",
            self._answer.id,
            self._who,
            why,
            self._answer.num_unread,
            self._count_bytes(),
        )
        error = ApiError(408, f"The answer was dropped: {why}.", code="slow_reader")
        self._answer.cancel(error, "dropped")
        if self._line is not None:
            self._line.let_go(LINGER_S)
