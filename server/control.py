"""All that stands behind the control routes, built once and handed to ``Server``. No logic."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from artifacts.errors import StorageError
from server.adapter_gate import LoadGate
from server.adapters import AdapterEngine, AdapterService
from server.answers.responses.store import ResponseStore
from server.audit import AuditLog
from server.checkpoints import CheckpointVersion
from server.comparison.experiments import Experiments
from server.comparison.feedback import Feedback
from server.comparison.journal import AnswerJournal
from server.files import FileStore
from server.jobs.child import Niceness, child_environment
from server.jobs.end import JobEnd
from server.jobs.pause_rule import PauseLimits
from server.jobs.pauses import FirstTokenP90
from server.jobs.run import ChildPlan
from server.jobs.runner import JobLimits, JobRunner
from server.jobs.store import JobStore

if TYPE_CHECKING:
    from artifacts.base import Base
    from artifacts.registry import AdapterVersion, Registry
    from server.settings import Settings

log = logging.getLogger("loraloop.server")

MIB = 1024 * 1024
TRAINING = (sys.executable, "-m", "training")


@dataclass(frozen=True, slots=True)
class ControlLimits:
    """What the operator allows; the fields are settings of the same names."""

    max_upload_bytes: int = 512 * MIB
    max_host_adapters: int = 64
    max_adapter_bytes: int | None = None  # half of what is free at start
    training_niceness: Niceness = "idle"
    training_threads: int = 1
    training_memory_bytes: int | None = None  # most of what is free when a job starts
    training_ttft_target_ms: float | None = None
    training_pause_after_s: float = 2.0
    training_max_pause_s: float = 60.0
    max_running_jobs: int = 1
    training_stop_grace_s: float = 20.0
    resume_interrupted_jobs: bool = False
    max_answers_kept: int = 200_000
    max_responses_kept: int = 10_000

    @classmethod
    def of(cls, settings: Settings) -> ControlLimits:
        """The server's settings where they are set, else the defaults above."""
        given = {field.name: getattr(settings, field.name, None) for field in fields(cls)}
        return cls(**{name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True, slots=True)
class Control:
    """The services that routes and chats share, and their background work."""

    adapters: AdapterService
    experiments: Experiments
    feedback: Feedback
    files: FileStore
    jobs: JobRunner
    audit: AuditLog
    responses: ResponseStore
    _flushing: list[asyncio.Task[None]]

    def services(self) -> dict[str, Any]:
        """The services by the names that ``Server`` gives them."""
        return {field.name: getattr(self, field.name) for field in fields(self)[:-1]}

    async def start(self) -> None:
        """Settle what a crash left and begin with the queue. Call with the engine running."""
        await asyncio.to_thread(self.files.recover)
        for writer in (self.feedback, self.audit, self.responses):
            self._flushing.append(asyncio.create_task(writer.keep_flushing()))
        await self.jobs.start()

    async def stop(self) -> None:
        """Checkpoint running jobs and write what is still in memory. Call before the engine's."""
        await self.jobs.stop()
        for task in self._flushing:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._flushing.clear()
        await asyncio.to_thread(self.audit.flush)
        for journaled in (self.feedback, self.responses):
            try:
                await asyncio.to_thread(journaled.flush)
            except StorageError:  # must not keep the rest of the server from stopping in order
                log.exception("the last answers wait in the journal for the next start")


@dataclass(frozen=True, slots=True)
class TrainingSetup:
    """What jobs need of the server besides its registry."""

    base_source: str | None = None  # what it was started on, folder or hub id; None: embedded
    first_token_p90_s: FirstTokenP90 = lambda _: None  # what training stands aside by
    command: Sequence[str] = TRAINING  # tests train with a script


def build_control(
    registry: Registry,
    base: Base,
    engine: AdapterEngine,
    limits: ControlLimits,
    training: TrainingSetup,
) -> Control:
    """All services over one registry."""
    home, database = registry.home, registry.database
    database.create_tables()
    audit = AuditLog(database)
    gate = LoadGate.of(base, engine.max_rank)
    adapters = AdapterService(
        engine,
        gate,
        max_host_adapters=limits.max_host_adapters,
        max_host_bytes=_adapter_bytes(limits.max_adapter_bytes),
        is_registered=lambda version: _is_known(version, registry),
    )
    files = FileStore(home, database, max_bytes=limits.max_upload_bytes)
    store = JobStore(database)
    job_limits = _job_limits(limits, registry, training)
    end = JobEnd(store, files, registry, adapters, audit)
    return Control(
        adapters=adapters,
        experiments=Experiments(database),
        feedback=Feedback(
            database, AnswerJournal(home.answers), max_answers=limits.max_answers_kept
        ),
        files=files,
        jobs=JobRunner(home, store, files, end, job_limits, training.first_token_p90_s),
        audit=audit,
        responses=ResponseStore(
            database, AnswerJournal(home.responses), max_kept=limits.max_responses_kept
        ),
        _flushing=[],
    )


def _job_limits(limits: ControlLimits, registry: Registry, training: TrainingSetup) -> JobLimits:
    url = registry.database.url.render_as_string(hide_password=False)
    home = str(registry.home.root)
    target_ms = limits.training_ttft_target_ms
    return JobLimits(
        child=ChildPlan(
            command=tuple(training.command),
            arguments=("--progress", "json"),
            env=child_environment(
                limits.training_threads, LORALOOP_HOME=home, LORALOOP_DATABASE_URL=url
            ),
            niceness=limits.training_niceness,
            memory_bytes=limits.training_memory_bytes,
            base_source=_absolute(training.base_source),
        ),
        num_threads=limits.training_threads,
        max_running=limits.max_running_jobs,
        stop_grace_s=limits.training_stop_grace_s,
        resume_interrupted=limits.resume_interrupted_jobs,
        pauses=PauseLimits(
            target_s=None if target_ms is None else target_ms / 1000,
            after_s=limits.training_pause_after_s,
            longest_s=limits.training_max_pause_s,
        ),
    )


def _is_known(version: AdapterVersion, registry: Registry) -> bool:
    if isinstance(version, CheckpointVersion):
        return version.path.is_dir()
    return version in registry.list()


def _adapter_bytes(wanted: int | None) -> int:
    """What adapters may take of host memory; the base is loaded when this is asked."""
    return psutil.virtual_memory().available // 2 if wanted is None else wanted


def _absolute(source: str | None) -> str | None:
    """A folder as the child finds it from its own working directory; hub ids stay as they are."""
    if source is not None and Path(source).expanduser().exists():
        return str(Path(source).expanduser().resolve())
    return source
