"""What waits in a journal, brought to the database in batches by one writer. Knows no table."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import InstrumentedAttribute, Session

from artifacts.database import BUSY_TIMEOUT_S
from artifacts.errors import StorageBusy, StorageError
from server.trouble import Trouble

log = logging.getLogger("loraloop.server")

FLUSH_EVERY_S = 0.5
IDS_PER_QUERY = 500


class BatchWriter:
    """``write`` brings all that waits to the database; ``has_more`` says whether anything does.

    ``what`` it is stands in errors and in the log.
    """

    def __init__(
        self, write: Callable[[], None], has_more: Callable[[], bool], trouble: Trouble, what: str
    ) -> None:
        self._write = write
        self._has_more = has_more
        self._trouble = trouble
        self._what = what
        self._flushing = threading.Lock()

    def flush(self) -> None:
        """Write what waits. Raises StorageError; it is kept then."""
        if not self._flushing.acquire(timeout=BUSY_TIMEOUT_S):
            raise StorageBusy(f"earlier {self._what} are still being written; try again")
        try:
            self._write()
        except StorageError as error:
            self._trouble.begin(error)
            raise
        finally:
            self._flushing.release()
        self._trouble.end()

    async def keep_flushing(self) -> None:
        """Write batches until cancelled. A database that fails for a while loses nothing."""
        while True:
            await asyncio.sleep(FLUSH_EVERY_S)
            if not self._has_more():
                continue
            try:
                await asyncio.to_thread(self.flush)
            except StorageError:
                pass  # said by now; tried again
            except Exception:  # a bug of ours: it must not end the recording for good
                log.exception("%s could not be recorded", self._what)


def known_ids(session: Session, column: InstrumentedAttribute[Any], ids: list[str]) -> set[str]:
    """Those of ``ids`` that the column has: a process that died may have written them already."""
    known: set[str] = set()
    for start in range(0, len(ids), IDS_PER_QUERY):
        some = ids[start : start + IDS_PER_QUERY]
        known.update(session.scalars(select(column).where(column.in_(some))))
    return known
