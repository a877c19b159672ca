"""Scores for answers. Remembers which model gave which answer; knows no HTTP and no statistics.

Answers are noted in a journal (a chat must not wait for the disk) and reach the database in
batches; feedback itself is there before it is acknowledged. The newest ``max_answers`` answers can
be scored.
"""

from __future__ import annotations

import math
import threading
import time

from sqlalchemy import delete, func, select

from artifacts.database import Database
from artifacts.errors import InvalidInput, NotFound
from artifacts.storage import storage_errors
from server.batches import BatchWriter, known_ids
from server.comparison.journal import AnswerJournal, Record
from server.tables import AnswerRow, FeedbackRow
from server.trouble import Trouble

PRUNE_EVERY = 1_000  # answers
MAX_COMMENT = 4_000  # characters


class Feedback:
    """``note_answer`` from the event loop; the rest blocks and may run in any thread."""

    def __init__(self, database: Database, journal: AnswerJournal, *, max_answers: int) -> None:
        self._database = database
        self._journal = journal
        self._max_answers = max_answers
        self._pending: dict[str, Record] = {each["id"]: each for each in journal.read()}
        self._noting = threading.Lock()  # pending and journal say the same
        self._since_prune = 0
        self.trouble = Trouble("answers cannot be recorded; they wait in memory")
        self._writer = BatchWriter(
            self._write, lambda: bool(self._pending), self.trouble, "answers"
        )
        self._journal_trouble = Trouble("answers would not survive a crash")

    def note_answer(
        self,
        answer_id: str,
        *,
        model: str,
        experiment: str | None = None,
        arm: str | None = None,
        subject: str | None = None,
    ) -> None:
        """Make ``answer_id`` something that feedback can refer to."""
        if len(self._pending) >= self._max_answers:  # the database has been failing for long
            return
        record: Record = {
            "id": answer_id,
            "model": model,
            "experiment": experiment,
            "arm": arm,
            "subject": _storable(subject),
            "created_at": time.time(),
        }
        with self._noting:
            self._pending[answer_id] = record
            try:
                self._journal.append(record)
            except OSError as error:  # the answer is worth more than the right to score it
                self._journal_trouble.begin(error)
            else:
                self._journal_trouble.end()

    def record(self, answer_id: str, score: float, comment: str | None = None) -> FeedbackRow:
        """Store the score of an answer; a later one replaces it. Raises NotFound, InvalidInput."""
        if not (math.isfinite(score) and 0 <= score <= 1):
            raise InvalidInput(f"score is {score}: give a number from 0 to 1.", param="score")
        if comment is not None and len(comment) > MAX_COMMENT:
            raise InvalidInput(
                f"comment has {len(comment)} characters, at most {MAX_COMMENT} are kept.",
                param="comment",
            )
        self.flush()
        with self._database.session() as session:
            answer = session.scalar(select(AnswerRow).where(AnswerRow.id == answer_id))
            row = session.get(FeedbackRow, answer_id)
            now = time.time()
            if row is None:
                if answer is None:
                    raise NotFound(
                        f"No answer has the id {answer_id!r}: send the 'id' of a completion "
                        f"(the newest {self._max_answers} are kept)."
                    )
                row = FeedbackRow(
                    answer_id=answer_id,
                    model=answer.model,
                    experiment=answer.experiment,
                    arm=answer.arm,
                    subject=answer.subject,
                    created_at=now,
                )
                session.add(row)
            row.score, row.comment, row.updated_at = score, _storable(comment), now
            return row

    def flush(self) -> None:
        """Write what waits. Raises StorageError; it is kept then."""
        self._writer.flush()

    async def keep_flushing(self) -> None:
        """Write batches until cancelled."""
        await self._writer.keep_flushing()

    def _write(self) -> None:
        with self._noting:
            batch, sealed = list(self._pending.values()), self._journal.seal()
        if not batch:
            return
        with self._database.session() as session:
            known = known_ids(session, AnswerRow.id, [record["id"] for record in batch])
            fresh = [record for record in batch if record["id"] not in known]
            session.add_all(AnswerRow(**record) for record in fresh)
        with self._noting:
            for record in batch:
                self._pending.pop(record["id"], None)
        with storage_errors("the journal of answers"):
            self._journal.discard(sealed)
        self._since_prune += len(batch)
        if self._since_prune >= PRUNE_EVERY:
            self._prune()

    def _prune(self) -> None:
        self._since_prune = 0
        with self._database.session() as session:
            newest = session.scalar(select(func.max(AnswerRow.sequence))) or 0
            oldest_kept = newest - self._max_answers
            session.execute(delete(AnswerRow).where(AnswerRow.sequence <= oldest_kept))


def _storable(text: str | None) -> str | None:
    """Clients choose this text: what no database takes must not spoil a whole batch."""
    if text is None:
        return None
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()
