"""One run of one job: a training child from start to end. Knows no queue and no registry."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from artifacts.errors import StorageError
from artifacts.storage import storage_errors
from server.jobs.child import Niceness, TrainingChild
from server.jobs.events import EventRecorder
from server.jobs.folder import JobFolder
from server.jobs.memory import limit_bytes, over_limit, until_over
from server.jobs.patience import Patience
from server.jobs.pause_rule import Change
from server.jobs.progress import ProgressFile, last_lines
from server.jobs.states import JobError, Outcome, Stopping, decide
from server.jobs.store import JobStore
from server.tables import JobRow

log = logging.getLogger("loraloop.server")


@dataclass(frozen=True, slots=True)
class ChildPlan:
    """How children are started. ``command`` is followed by the configuration's path."""

    command: tuple[str, ...]
    arguments: tuple[str, ...]
    env: Mapping[str, str]
    niceness: Niceness
    memory_bytes: int | None  # None: most of what is free when it starts
    base_source: str | None  # folder or hub id; None is the embedded base


class JobRun:
    """A run that ``follow`` carries out and ``stop`` may end early, from another task."""

    def __init__(
        self,
        job: JobRow,
        folder: JobFolder,
        store: JobStore,
        plan: ChildPlan,
        patience: Patience,
    ) -> None:
        self.job = job
        self.folder = folder
        self.ended = asyncio.Event()  # set by the owner once the outcome is on record
        self._store = store
        self._plan = plan
        self._patience = patience
        self._stopping: Stopping | None = None
        self._child: TrainingChild | None = None
        self._killed_for: JobError | None = None

    @property
    def is_frozen(self) -> bool:
        return self._child is not None and self._child.is_frozen

    async def follow(self, config: dict[str, Any]) -> Outcome:
        """Run the child and record what it says. Never leaves a child behind.

        Raises StorageError if the server stops while something cannot be recorded.
        """
        progress = ProgressFile(self.folder.progress)
        try:
            await self._patience.outlast(
                lambda: asyncio.to_thread(self._prepare, config, progress),
                lambda: self._stopping is not None,
            )
        except StorageError:
            return self._outcome_of_no_run()
        if self._stopping is not None:
            return self._outcome_of_no_run()
        command = [*self._plan.command, str(self.folder.config), *self._plan.arguments]
        try:
            child = self._child = await TrainingChild.spawn(
                command,
                progress,
                self.folder.log,
                env=self._plan.env,
                niceness=self._plan.niceness,
            )
        except OSError as error:
            message = f"The training process could not be started: {error}."
            return Outcome("failed", error=JobError("internal", message))
        try:
            return await self._follow_child(child)
        finally:
            await child.stop(0)

    def is_leaving(self) -> bool:
        """The server stops: what cannot be recorded now is settled at its next start."""
        return self._stopping == "shutdown"

    def _prepare(self, config: dict[str, Any], progress: ProgressFile) -> None:
        with storage_errors(self.folder.root):
            self.folder.prepare(config)
            progress.mark_run(resumed=self.job.resumed)

    async def stop(self, why: Stopping, grace_s: float) -> None:
        """End the run; returns once its child is gone. The owner still has to conclude it."""
        if self._stopping != "cancel":  # whoever cancelled wants nothing kept
            self._stopping = why
            try:
                await asyncio.to_thread(self._store.update, self.job.id, stopping=why)
            except StorageError:  # only a crash of ours could forget the reason now
                log.exception("job %s: could not record that it is to %s", self.job.id, why)
        if self._child is not None:
            await self._child.stop(grace_s)

    async def follow_traffic(self, change: Change) -> None:
        """Freeze or thaw the child, if it may be, and say so in the job's events."""
        if self._child is None:
            return
        if change.pauses and not await self._child.freeze():
            return
        if not change.pauses:
            self._child.thaw()
        await asyncio.to_thread(
            self._store.add_event, self.job.id, change.reason, payload=change.facts
        )

    async def _follow_child(self, child: TrainingChild) -> Outcome:
        facts = {"pid": child.pid, "pid_started_at": child.started_at}
        await self._patience.outlast(
            lambda: asyncio.to_thread(self._store.update, self.job.id, **facts), self.is_leaving
        )
        if self._stopping is not None:  # asked while it was being started
            await child.stop(0)
        recorder = EventRecorder(self._store, self.job, self._patience, self.is_leaving)
        watch = asyncio.create_task(self._keep_within_memory(child))
        try:
            async for event in child.events():
                await recorder.handle(event)
        finally:
            watch.cancel()
        exit_code = await child.wait()
        tail = await asyncio.to_thread(last_lines, self.folder.log)
        return decide(recorder.evidence, exit_code, self._stopping, tail, self._killed_for)

    async def _keep_within_memory(self, child: TrainingChild) -> None:
        wanted = self._plan.memory_bytes
        limit = limit_bytes(wanted)
        used = await until_over(child.pid, limit)
        self._killed_for = over_limit(used, limit, wanted)
        log.warning("job %s: %s", self.job.id, self._killed_for.message)
        await child.kill()

    def _outcome_of_no_run(self) -> Outcome:
        match self._stopping:
            case "cancel":
                return Outcome("cancelled")
            case "pause":
                return Outcome("paused")
            case _:
                return Outcome("interrupted")


def finished_values() -> dict[str, Any]:
    """Columns that every end of a run sets."""
    return {"stopping": None, "pid": None, "pid_started_at": None, "estimated_finish": None}


def ended_values() -> dict[str, Any]:
    """Columns that the end of a job sets."""
    return {**finished_values(), "finished_at": time.time()}
