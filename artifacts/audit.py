"""The table of the audit trail, which the server and the command line both write.

Knows nobody who writes it; the server's way of never losing an entry is ``server.audit``.
"""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy import JSON, Float, Integer, String, Text
from sqlalchemy.orm import Mapped, Session, mapped_column

from artifacts.database import Table

GATE_OVERRIDE = "gate.override"  # a version that failed its gate was pointed to all the same


class AuditRow(Table):
    """Who changed what, and when."""

    __tablename__ = "audit"

    sequence: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    at: Mapped[float] = mapped_column(Float)
    who: Mapped[str] = mapped_column(String(64))  # "key:<fingerprint>", "cli:<user>", "server", …
    action: Mapped[str] = mapped_column(String(48))
    subject: Mapped[str] = mapped_column(Text)
    detail: Mapped[dict[str, Any]] = mapped_column(JSON)


def append(session: Session, who: str, action: str, subject: str, **detail: Any) -> None:
    """Adds an entry to the caller's transaction. ``detail`` must be JSON."""
    session.add(
        AuditRow(at=time.time(), who=who[:64], action=action, subject=subject, detail=detail)
    )
