"""The registry's catalog in memory: a request asks it, and never a disk, whom a model id means.

So no lock, no slow disk and no damaged database can hold up the event loop or an answer: while the
registry cannot be read, its last known state answers. This process's own changes are seen at once,
other processes' (``loraloop adapters alias``) after REFRESH_S, and a name that is not known yet
makes it look before anybody is told so.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING

from server.trouble import Trouble

if TYPE_CHECKING:
    from artifacts.registry import Registry

REFRESH_S = 0.5


class LiveCatalog:
    """``current`` is the latest state that could be read; the rest keeps it so."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._reading = threading.Lock()  # so that a later reading is never the older one
        self._turn = asyncio.Lock()
        self._next: asyncio.Task[None] | None = None
        self.trouble = Trouble("the registry cannot be read; its last known state serves on")
        self.current = registry.catalog()
        self.jobs = registry.home.jobs
        registry.on_change = self._read_quietly

    async def refresh(self) -> None:
        """Read what is there now. Raises what reading raises, StorageError for one.

        Whoever asks while one is reading shares the next reading: a storm of unknown names costs
        one reading after another, not one for each.
        """
        if self._next is None:
            self._next = asyncio.create_task(self._read_next(), name="read the registry")
        await asyncio.shield(self._next)

    async def keep_fresh(self) -> None:
        """Read every REFRESH_S until cancelled."""
        while True:
            await asyncio.sleep(REFRESH_S)
            await asyncio.to_thread(self._read_quietly)

    async def _read_next(self) -> None:
        async with self._turn:
            self._next = None  # who asks from here on may want to know of a later change
            await asyncio.to_thread(self._read)

    def _read(self) -> None:
        with self._reading:
            try:
                self.current = self._registry.catalog()
            except Exception as error:  # whatever it is, the last known state stays
                self.trouble.begin(error)
                raise
            self.trouble.end()

    def _read_quietly(self) -> None:
        with contextlib.suppress(Exception):  # said by now
            self._read()
