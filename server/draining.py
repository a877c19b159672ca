"""uvicorn, stopped in the order that loses no answer.

On the first SIGTERM or SIGINT the server stays reachable: it says that it is not ready, refuses
new answers with 503, and lets running ones finish for up to the grace time. What runs longer ends
with an error event. Then the listener closes. A second signal skips the waiting.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import FrameType

import uvicorn

from server.state import Server

LAST_BYTES_S = 5  # for uploads and the like, once no answer runs


class DrainingServer(uvicorn.Server):
    """``on_ready`` is called once requests are taken."""

    def __init__(
        self, config: uvicorn.Config, server: Server, on_ready: Callable[[], None]
    ) -> None:
        config.timeout_graceful_shutdown = LAST_BYTES_S
        super().__init__(config)
        self._server = server
        self._on_ready = on_ready
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)  # type: ignore[arg-type]
        if self.started:
            self._on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal. Unlike uvicorn's own, it is not raised again at the end: stopping on request
        is a success, exit code 0."""
        if self._server.lifecycle.is_draining or self._loop is None or not self.started:
            self.should_exit = self.force_exit = True
            return
        self._server.lifecycle.begin_drain()
        self._loop.call_soon_threadsafe(self._begin_drain)

    def _begin_drain(self) -> None:
        self._draining = asyncio.create_task(self._drain(), name="drain")

    async def _drain(self) -> None:
        try:
            async with asyncio.timeout(self._server.settings.grace_s):
                await self._server.lifecycle.wait_idle()
        except TimeoutError:
            await asyncio.to_thread(self._server.engine.stop)  # ends each answer in order
            async with asyncio.timeout(LAST_BYTES_S):
                await self._server.lifecycle.wait_idle()
        finally:
            self.should_exit = True
