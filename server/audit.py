"""Who changed what, and when. Append-only; knows no route. Blocks on the database."""

from __future__ import annotations

import time
from typing import Any, Protocol

from sqlalchemy import select

from artifacts.database import Database
from server.paging import Page, Paging, page_of
from server.tables import AuditRow

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

    def record(self, who: str, action: str, subject: str, **detail: Any) -> None:
        """Append one change. ``detail`` must be JSON."""
        row = AuditRow(at=time.time(), who=who, action=action, subject=subject, detail=detail)
        with self._database.session() as session:
            session.add(row)

    def page(self, paging: Paging, subject: str | None = None) -> Page[AuditRow]:
        """Changes, of one subject if given; ``paging.after`` is the ``sequence`` of an entry."""
        after = int(paging.after) if paging.after is not None else None
        query = select(AuditRow)
        if subject is not None:
            query = query.where(AuditRow.subject == subject)
        with self._database.reading() as session:
            return page_of(session, query, AuditRow.sequence, paging, after)
