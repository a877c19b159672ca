"""uvicorn, stopped in the order that loses no answer.

On the first SIGTERM or SIGINT the server stays reachable: it says that it is not ready, answers
new requests and those that still wait for their turn with 503, lets training write its checkpoint
and running answers finish, for up to the grace time. What runs longer ends with an error event.
Then the listener closes. A second signal leaves at once: training is told, nobody is waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from types import FrameType

import psutil
import uvicorn
from fastapi import FastAPI

from server.state import Server

LAST_BYTES_S = 5  # for uploads and the like, once no answer runs
LOOK_EVERY_S = 0.1


def leave_now(code: int) -> None:
    """Training processes write a checkpoint and end by themselves; the next start settles them."""
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            child.terminate()
            child.resume()  # one that is paused hears nothing else
    os._exit(code)


class DrainingServer(uvicorn.Server):
    """Serves ``app`` until a signal; what its lifespan raises at the start comes out of ``run``.

    Args:
        on_ready: called once requests are taken.
        leave: ends the process with an exit code, now.
    """

    def __init__(
        self,
        app: FastAPI,
        config: uvicorn.Config,
        server: Server,
        on_ready: Callable[[], None],
        leave: Callable[[int], object] = leave_now,
    ) -> None:
        config.timeout_graceful_shutdown = LAST_BYTES_S
        config.lifespan = "off"  # uvicorn would make a traceback of whatever stops the start
        super().__init__(config)
        self._lifespan = app.router.lifespan_context(app)
        self._server = server
        self._on_ready = on_ready
        self._leave = leave
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None

    async def serve(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        self._loop = asyncio.get_running_loop()
        with self.capture_signals():
            async with self._lifespan:
                if not self.should_exit:
                    await self._serve(sockets)  # type: ignore[arg-type]

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        await super().startup(sockets)  # type: ignore[arg-type]
        self._on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal. Unlike uvicorn's own, it is not raised again at the end: stopping on request
        is a success, exit code 0."""
        if self.should_exit or self._server.lifecycle.is_draining:
            self._leave(128 + sig)
        elif self._loop is None or not self.started:
            self.should_exit = True
        else:
            self._server.lifecycle.begin_drain()
            self._loop.call_soon_threadsafe(self._begin_drain)

    def _begin_drain(self) -> None:
        self._draining = asyncio.create_task(self._drain(), name="drain")

    async def _drain(self) -> None:
        # A job that cannot be stopped in order must not cut answers: the lifespan's end says so.
        await asyncio.gather(self._end_answers(), self._stop_training(), return_exceptions=True)
        self.should_exit = True

    async def _end_answers(self) -> None:
        lifecycle, engine = self._server.lifecycle, self._server.engine
        deadline = time.monotonic() + self._server.settings.grace_s
        while lifecycle.num_answers and time.monotonic() < deadline:
            engine.abort_waiting()  # again and again: a request on its way in still joins the queue
            await _idle_within(LOOK_EVERY_S, self._server)
        if lifecycle.num_answers:
            await asyncio.to_thread(engine.stop)  # ends each answer in order
            await _idle_within(LAST_BYTES_S, self._server)

    async def _stop_training(self) -> None:
        """Beside the answers: it leaves them the processor, and both need their grace time."""
        if self._server.control is not None:
            await self._server.control.jobs.stop()


async def _idle_within(seconds: float, server: Server) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await server.lifecycle.wait_idle()
