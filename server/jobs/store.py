"""Jobs, their events and checkpoints in the database. Knows no process and no HTTP.

Every method blocks on one short transaction and may run in any thread. Rows come back detached:
read them, do not change them.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from artifacts.database import Database
from artifacts.errors import InvalidInput, NotFound
from server.jobs.states import Status
from server.paging import Page, Paging, page_of
from server.tables import CheckpointRow, FileRow, JobEventRow, JobRow

DATA = "fine-tune"  # what a file must have been uploaded for
_EVENT_PREFIX = "ftevent-"


class JobStore:
    """The record of all fine-tuning jobs."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # --- jobs ---

    def create(self, job: JobRow) -> JobRow:
        """Queue a job whose files exist at this very moment. Raises InvalidInput otherwise."""
        job.id = f"ftjob-{secrets.token_hex(12)}"
        job.status, job.created_at = "queued", time.time()
        with self._database.session() as session:
            job.queued_at = _end_of_queue(session)
            for param in ("training_file", "validation_file"):
                file_id = getattr(job, param)
                if file_id is None:
                    continue
                _check_data_file(session, file_id, param)
            session.add(job)
            session.flush()
            session.add(_event(job.id, "Created fine-tuning job", "info", "message", None))
        return job

    def get(self, job_id: str) -> JobRow:
        """Raises NotFound."""
        with self._database.reading() as session:
            return _job(session, job_id)

    def update(self, job_id: str, **values: Any) -> JobRow:
        """Set columns of a job."""
        with self._database.session() as session:
            return _set(_job(session, job_id), values)

    def move(
        self,
        job_id: str,
        status: Status,
        message: str,
        *,
        only_from: Sequence[Status],
        level: str = "info",
        payload: dict[str, Any] | None = None,
        **values: Any,
    ) -> JobRow | None:
        """Change the status and say so in the events; None if the job is not in ``only_from``.

        ``queued`` puts it at the end of the queue.
        """
        with self._database.session() as session:
            job = _job(session, job_id)
            if job.status not in only_from:
                return None
            session.add(_event(job_id, message, level, "message", payload))
            if status == "queued":
                values["queued_at"] = _end_of_queue(session)
            return _set(job, {"status": status, **values})

    def page(self, paging: Paging, metadata: dict[str, str] | None = None) -> Page[JobRow]:
        """Jobs in order of creation. Raises NotFound if ``paging.after`` names no job."""
        query = select(JobRow)
        for key, value in (metadata or {}).items():
            query = query.where(JobRow.user_metadata[key].as_string() == value)
        with self._database.reading() as session:
            after = _job(session, paging.after).sequence if paging.after is not None else None
            return page_of(session, query, JobRow.sequence, paging, after)

    def in_status(self, statuses: Sequence[Status]) -> list[JobRow]:
        """Jobs in queue order."""
        query = select(JobRow).where(JobRow.status.in_(statuses))
        with self._database.reading() as session:
            return list(session.scalars(query.order_by(JobRow.queued_at, JobRow.sequence)))

    def places(self) -> dict[str, int]:
        """Waiting jobs with their places in the queue, from 1."""
        return {job.id: place for place, job in enumerate(self.in_status(("queued",)), start=1)}

    # --- events ---

    def add_event(
        self,
        job_id: str,
        message: str,
        *,
        level: str = "info",
        type: str = "message",
        payload: dict[str, Any] | None = None,
        **values: Any,
    ) -> None:
        """Append an event; ``values`` are columns of the job to set with it."""
        with self._database.session() as session:
            session.add(_event(job_id, message, level, type, payload))
            if values:
                _set(_job(session, job_id), values)

    def events(self, job_id: str, paging: Paging) -> Page[JobEventRow]:
        """Raises NotFound for an unknown job, InvalidInput for an unknown event."""
        after = None if paging.after is None else _event_sequence(paging.after)
        query = select(JobEventRow).where(JobEventRow.job_id == job_id)
        with self._database.reading() as session:
            _job(session, job_id)
            return page_of(session, query, JobEventRow.sequence, paging, after)

    # --- checkpoints ---

    def add_checkpoint(self, job_id: str, step: int, metrics: dict[str, Any]) -> None:
        """Record a checkpoint; one of the same step replaces it (a resumed run repeats steps)."""
        with self._database.session() as session:
            same = (CheckpointRow.job_id == job_id) & (CheckpointRow.step == step)
            row = session.scalar(select(CheckpointRow).where(same))
            if row is None:
                row = CheckpointRow(
                    id=f"ftckpt-{secrets.token_hex(12)}",
                    job_id=job_id,
                    step=step,
                    created_at=time.time(),
                )
                session.add(row)
            row.metrics = metrics

    def checkpoints(self, job_id: str, paging: Paging, steps: Sequence[int]) -> Page[CheckpointRow]:
        """Those of ``steps``. Raises NotFound for an unknown job or checkpoint."""
        query = select(CheckpointRow).where(
            CheckpointRow.job_id == job_id, CheckpointRow.step.in_(steps)
        )
        with self._database.reading() as session:
            _job(session, job_id)
            after = None
            if paging.after is not None:
                after = _checkpoint(session, job_id, paging.after).sequence
            return page_of(session, query, CheckpointRow.sequence, paging, after)

    def checkpoint(self, job_id: str, checkpoint_id: str) -> CheckpointRow:
        """Raises NotFound."""
        with self._database.reading() as session:
            _job(session, job_id)
            return _checkpoint(session, job_id, checkpoint_id)


def event_id(event: JobEventRow) -> str:
    """The id that clients page with."""
    return f"{_EVENT_PREFIX}{event.sequence:012d}"


def _event_sequence(text: str) -> int:
    digits = text.removeprefix(_EVENT_PREFIX)
    if digits == text or not (digits.isascii() and digits.isdigit()):
        raise InvalidInput(f"{text!r} is not the id of an event.", param="after")
    return int(digits[-18:])


def _event(
    job_id: str, message: str, level: str, type: str, payload: dict[str, Any] | None
) -> JobEventRow:
    return JobEventRow(
        job_id=job_id,
        created_at=time.time(),
        level=level,
        type=type,
        message=message,
        payload=payload,
    )


def _check_data_file(session: Session, file_id: str, param: str) -> None:
    purpose = session.scalar(select(FileRow.purpose).where(FileRow.id == file_id))
    if purpose is None:
        raise InvalidInput(
            f"No file has the id {file_id!r}: upload it with POST /v1/files first.", param=param
        )
    if purpose != DATA:
        raise InvalidInput(f"File {file_id} has purpose {purpose!r}, not {DATA!r}.", param=param)


def _end_of_queue(session: Session) -> float:
    """Now, or just behind whoever waits last: the clock may have been set back meanwhile."""
    last = session.scalar(select(func.max(JobRow.queued_at)).where(JobRow.status == "queued"))
    now = time.time()
    return now if last is None or last < now else math.nextafter(last, math.inf)


def _job(session: Session, job_id: str) -> JobRow:
    job = session.scalar(select(JobRow).where(JobRow.id == job_id))
    if job is None:
        raise NotFound(
            f"No fine-tuning job has the id {job_id!r}. GET /v1/fine_tuning/jobs lists them."
        )
    return job


def _checkpoint(session: Session, job_id: str, checkpoint_id: str) -> CheckpointRow:
    same = (CheckpointRow.job_id == job_id) & (CheckpointRow.id == checkpoint_id)
    row = session.scalar(select(CheckpointRow).where(same))
    if row is None:
        raise NotFound(f"Job {job_id} has no checkpoint {checkpoint_id!r}.")
    return row


def _set(job: JobRow, values: dict[str, Any]) -> JobRow:
    for column, value in values.items():
        setattr(job, column, value)
    return job
