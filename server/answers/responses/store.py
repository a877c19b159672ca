"""Stored responses: what ``previous_response_id`` goes on from, and what can be read again.

A response is noted in a journal (an answer must not wait for the disk) and reaches the database
with the next batch; meanwhile it is read from memory. So it survives a kill from the moment on at
which its client is told of its end, and a database that fails for a while loses nothing. Each
belongs to the key that made it. Knows no HTTP.
"""

from __future__ import annotations

import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from artifacts.database import Database
from artifacts.errors import NotFound
from artifacts.storage import storage_errors
from server.answers.responses.items import Item
from server.batches import BatchWriter, known_ids
from server.comparison.journal import AnswerJournal
from server.tables import ResponseRow
from server.trouble import Trouble

MAX_PENDING_BYTES = 256 * 1024 * 1024  # while the database fails; beyond, nothing is stored
MAX_CHAIN_BYTES = 64 * 1024 * 1024
MAX_CHAIN = 8192  # responses
NUM_READERS = 8  # threads
_ID = re.compile(r"resp_\w{1,64}", re.ASCII)


class ChainTooLong(Exception):
    """More has been said than any context holds."""


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """``input`` and ``response`` are JSON: the items of its own input, and what was sent."""

    id: str
    owner: str
    previous_id: str | None
    input: str
    response: str
    created_at: float

    @property
    def num_bytes(self) -> int:
        return len(self.input) + len(self.response)

    @property
    def own_items(self) -> list[Item]:
        """Its input, without what it goes on from."""
        items: list[Item] = json.loads(self.input)
        return items

    @property
    def items(self) -> list[Item]:
        """Its own input and its output."""
        output: list[Item] = json.loads(self.response)["output"]
        return self.own_items + output


class ResponseStore:
    """``put`` from the event loop; the rest blocks and may run in any thread."""

    def __init__(self, database: Database, journal: AnswerJournal, *, max_kept: int) -> None:
        self._database = database
        self._journal = journal
        self._max_kept = max_kept
        self._pending = {each["id"]: StoredResponse(**each) for each in journal.read()}
        self._num_bytes = sum(each.num_bytes for each in self._pending.values())
        self._noting = threading.Lock()  # pending and journal say the same
        # For ``chain``: a disk that hangs must not hold the threads that read long prompts.
        self.readers = ThreadPoolExecutor(NUM_READERS, thread_name_prefix="responses")
        self.trouble = Trouble("responses cannot be stored; they wait in memory")
        self._writer = BatchWriter(
            self._write, lambda: bool(self._pending), self.trouble, "responses"
        )
        self.journal_trouble = Trouble("stored responses would not survive a crash")

    def put(self, stored: StoredResponse) -> bool:
        """Keep it; False where the database has been failing for too long."""
        with self._noting:
            if self._num_bytes + stored.num_bytes > MAX_PENDING_BYTES:
                return False
            self._pending[stored.id] = stored
            self._num_bytes += stored.num_bytes
            try:
                self._journal.append(asdict(stored))
            except OSError as error:  # it is kept all the same, unless the process is killed
                self.journal_trouble.begin(error)
            else:
                self.journal_trouble.end()
        return True

    def get(self, response_id: str, owner: str) -> StoredResponse:
        """Raises NotFound, also for another's; StorageError."""
        # In this order: what leaves the one is in the other already.
        if (stored := self._pending.get(response_id)) is None:
            with self._database.reading() as session:
                stored = _read(session, response_id)
        return _owned(stored, response_id, owner)

    def chain(self, response_id: str, owner: str) -> list[StoredResponse]:
        """The response and what it goes on from, the oldest first.

        Raises:
            NotFound: one of them is not there, or another's.
            ChainTooLong, StorageError.
        """
        chain: list[StoredResponse] = []
        num_bytes, wanted = 0, response_id
        with self._noting:
            waiting = self._pending.copy()  # of before the moment that the database shows
        with self._database.reading() as session:
            while True:
                stored = waiting.get(wanted) or _read(session, wanted)
                chain.append(_owned(stored, wanted, owner))
                num_bytes += chain[-1].num_bytes
                if num_bytes > MAX_CHAIN_BYTES or len(chain) > MAX_CHAIN:
                    raise ChainTooLong(f"the responses before {response_id} are too many")
                if (previous := chain[-1].previous_id) is None:
                    return chain[::-1]
                wanted = previous

    def delete(self, response_id: str, owner: str) -> None:
        """For good: once this returns, no crash brings it back. Raises NotFound, StorageError."""
        self.flush()  # else the journal might know it still
        with self._database.session() as session:
            _owned(_read(session, response_id), response_id, owner)
            session.execute(delete(ResponseRow).where(ResponseRow.id == response_id))

    def flush(self) -> None:
        """Write what waits. Raises StorageError; it is kept then."""
        self._writer.flush()

    async def keep_flushing(self) -> None:
        """Write batches until cancelled."""
        await self._writer.keep_flushing()

    def _write(self) -> None:
        with self._noting:
            batch, sealed = list(self._pending.values()), self._journal.seal()
        if batch:
            self._insert(batch)
        with self._noting:
            for stored in batch:
                del self._pending[stored.id]
                self._num_bytes -= stored.num_bytes
        with storage_errors("the journal of responses"):
            self._journal.discard(sealed)

    def _insert(self, batch: list[StoredResponse]) -> None:
        with self._database.session() as session:
            known = known_ids(session, ResponseRow.id, [stored.id for stored in batch])
            fresh = [stored for stored in batch if stored.id not in known]
            session.add_all(ResponseRow(**asdict(stored)) for stored in fresh)
            session.flush()
            newest = session.scalar(select(func.max(ResponseRow.sequence))) or 0
            oldest_kept = newest - self._max_kept
            session.execute(delete(ResponseRow).where(ResponseRow.sequence <= oldest_kept))


def _read(session: Session, response_id: str) -> StoredResponse | None:
    if _ID.fullmatch(response_id) is None:  # and perhaps no text that a database takes
        return None
    row = session.scalar(select(ResponseRow).where(ResponseRow.id == response_id))
    if row is None:
        return None
    return StoredResponse(
        id=row.id,
        owner=row.owner,
        previous_id=row.previous_id,
        input=row.input,
        response=row.response,
        created_at=row.created_at,
    )


def _owned(stored: StoredResponse | None, response_id: str, owner: str) -> StoredResponse:
    if stored is None or stored.owner != owner:
        shown = response_id if len(response_id) <= 80 else response_id[:80] + "…"
        raise NotFound(f"Response with id {shown!r} not found.")
    return stored
