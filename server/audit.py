"""Who changed what, and when. Append-only; knows no route. Blocks on the database.

An entry is written once its change has happened. So a trail that cannot be written refuses nothing:
the entry goes to the log, waits in memory, and is written as soon as that works again.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections import deque
from typing import Any, Protocol

from sqlalchemy import select

from artifacts.audit import AuditRow
from artifacts.database import Database
from artifacts.errors import StorageError
from server.paging import Page, Paging, page_of
from server.trouble import Trouble

log = logging.getLogger("loraloop.server")

MAX_WAITING = 10_000  # entries; beyond, the oldest are in the log alone
RETRY_S = 5.0
SERVER = "server"  # changes that nobody asked for, such as a job's end


class Caller(Protocol):
    """Whoever sent a request."""

    @property
    def key_id(self) -> str | None: ...


def who(caller: Caller) -> str:
    """The name of a caller in the trail; never the key itself."""
    return "loopback" if caller.key_id is None else f"key:{caller.key_id}"


class AuditLog:
    """The trail behind ``GET /admin/audit``."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: deque[dict[str, Any]] = deque(maxlen=MAX_WAITING)
        self._writing = threading.Lock()
        self.trouble = Trouble("the audit trail cannot be written; its entries are in the log")

    def record(self, who: str, action: str, subject: str, **detail: Any) -> None:
        """Append one change, now or when it can be written. ``detail`` must be JSON."""
        entry = {"who": who, "action": action, "subject": subject, "detail": detail}
        with self._writing:
            self._waiting.append({"at": time.time(), **entry})
            if not self._write():
                log.error("not in the audit trail yet: %s", json.dumps(entry, ensure_ascii=False))

    def flush(self) -> None:
        """Write what waits, if that works again."""
        with self._writing:
            self._write()

    async def keep_flushing(self) -> None:
        """Write what waits until cancelled."""
        while True:
            await asyncio.sleep(RETRY_S)
            if self._waiting:
                await asyncio.to_thread(self.flush)

    def _write(self) -> bool:
        if not self._waiting:
            return True
        try:
            with self._database.session() as session:
                session.add_all(AuditRow(**entry) for entry in self._waiting)
        except StorageError as error:
            self.trouble.begin(error)
            return False
        self._waiting.clear()
        self.trouble.end()
        return True

    def page(self, paging: Paging, subject: str | None = None) -> Page[AuditRow]:
        """Changes, of one subject if given; ``paging.after`` is the ``sequence`` of an entry."""
        after = int(paging.after) if paging.after is not None else None
        query = select(AuditRow)
        if subject is not None:
            query = query.where(AuditRow.subject == subject)
        with self._database.reading() as session:
            return page_of(session, query, AuditRow.sequence, paging, after)
