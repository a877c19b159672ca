"""How a job ends: its version through the load gate and into the engine, or nothing left of it.

Knows the registry and the adapters; knows no process. The order is such that a crash in between is
found by ``JobRunner`` at the next start and concluded again: files go first, the status last.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from artifacts.errors import Conflict, InvalidName, LoraloopError, NotFound, StorageError
from artifacts.names import parse_ref
from server.audit import SERVER, AuditLog
from server.engine.errors import EngineError
from server.jobs.folder import JobFolder
from server.jobs.results import results_csv, results_file_id
from server.jobs.run import ended_values, finished_values
from server.jobs.states import ON_CHILD, JobError, Outcome
from server.jobs.store import JobStore
from server.names import fine_tuned_model_id
from server.tables import JobRow

if TYPE_CHECKING:
    from artifacts.registry import AdapterVersion, Registry
    from server.adapters import AdapterService
    from server.files import FileStore

log = logging.getLogger("loraloop.server")


def description_of(job: JobRow) -> str:
    """What a job writes into its version's settings, so that the version is found without it."""
    return f"fine-tuning job {job.id}"


class JobEnd:
    """Turns the outcome of a run into the job's last state."""

    def __init__(
        self,
        store: JobStore,
        files: FileStore,
        registry: Registry,
        adapters: AdapterService,
        audit: AuditLog,
    ) -> None:
        self._store = store
        self._files = files
        self._registry = registry
        self._adapters = adapters
        self._audit = audit

    async def conclude(self, job: JobRow, folder: JobFolder, outcome: Outcome) -> None:
        """Record how ``job`` ended; nothing but its record and logs stays of what failed."""
        version = await asyncio.to_thread(self._find_version, job, outcome.published)
        match outcome.status:
            case "cancelled":
                await self._discard(folder, version)
                await self._move(job, "cancelled", "The job was cancelled.", **ended_values())
            case "publish" if version is None:
                error = JobError("internal", "The published version is not in the registry.")
                await self._fail(job, folder, error)
            case _ if version is not None:  # published, whatever came after that
                await self._publish(job, folder, version, outcome)
            case "failed":
                assert outcome.error is not None
                await self._fail(job, folder, outcome.error)
            case "paused":
                message = "The job was paused; resuming continues from its last checkpoint."
                await self._move(job, "paused", message, **finished_values())
            case "interrupted":
                why = "The server stopped while the job ran."
                if outcome.error is not None:
                    why = f"The job was interrupted: {outcome.error.message}."
                message = (
                    f"{why} POST /v1/fine_tuning/jobs/{job.id}/resume continues from its last "
                    "checkpoint."
                )
                await self._move(job, "interrupted", message, level="warn", **finished_values())

    async def give_up(self, job: JobRow, folder: JobFolder, reason: str) -> None:
        """End a job that our own code failed on.

        The record goes first here: while the database fails, checkpoints must outlive the failure.
        """
        version = await asyncio.to_thread(self._find_version, job, {})
        await self._record_failure(job, JobError("internal", reason))
        await self._discard(folder, version)

    async def discard_files(self, folder: JobFolder) -> None:
        """Remove checkpoints of a job that will not run again."""
        await asyncio.to_thread(folder.keep_logs_only)

    async def _publish(
        self, job: JobRow, folder: JobFolder, version: AdapterVersion, outcome: Outcome
    ) -> None:
        load_s: float | None = None
        try:
            load_s = await self._adapters.load(version)
        except StorageError:
            raise  # tried again
        except EngineError as error:  # it stops, or has no memory left: its first request loads it
            log.warning("%s is published and not loaded yet: %s", version.id, error)
        except LoraloopError as error:
            log.warning("%s did not pass the load gate: %s", version.id, error)
            await self._discard(folder, version)
            error_ = JobError("load_gate", f"The new version cannot be served: {error}")
            await self._fail(job, folder, error_)
            return
        await asyncio.to_thread(
            self._files.put_results,
            results_file_id(job.id),
            f"{version.name}-{version.version}-results.csv",
            await asyncio.to_thread(results_csv, folder),
        )
        model_id = fine_tuned_model_id(job.model, version.name, version.version)
        result: dict[str, Any] = {
            "adapter": version.id,
            "content_hash": version.content_hash,
            "load_s": load_s,
            "duration_s": outcome.published.get("duration_s"),
            "metrics": dict(version.manifest.metrics),
            "gate": version.manifest.gate,
            "gates": [gate.model_dump() for gate in version.manifest.gates],
        }
        if version.is_fit:
            await asyncio.to_thread(
                self._store.add_event,
                job.id,
                f"New fine-tuned model created: {model_id}",
                payload={"fine_tuned_model": model_id, **result},
            )
        values = {**ended_values(), "version": version.version, "result": result}
        if version.is_fit:
            message = "The job has successfully completed"
            await self._move(job, "succeeded", message, **values)
        else:
            await self._tell_unfit(job, version, values)
        await self._audit_server("adapter.publish", version.id, job=job.id, load_s=load_s)

    async def _tell_unfit(
        self, job: JobRow, version: AdapterVersion, values: dict[str, Any]
    ) -> None:
        """To OpenAI's clients it failed, so that nobody goes live with it unseen; the version
        stays, for whoever asks for it by its number."""
        reasons = "; ".join(str(gate) for gate in version.manifest.failed_gates)
        message = (
            f"The new version failed its gate ({reasons}). It is registered as {version.id} and "
            "answers under this id only; an alias or an arm of an experiment may point to it with "
            "force."
        )
        await self._record_failure(job, JobError("gate", message), **values)

    async def _fail(self, job: JobRow, folder: JobFolder, error: JobError) -> None:
        await self._discard(folder, None)
        await self._record_failure(job, error)

    async def _record_failure(self, job: JobRow, error: JobError, **values: Any) -> None:
        stored = asdict(error)
        values = {**ended_values(), **values, "error": stored}
        await self._move(job, "failed", error.message, level="error", **values)

    async def _move(self, job: JobRow, status: Any, message: str, **values: Any) -> None:
        moved = await asyncio.to_thread(
            self._store.move,
            job.id,
            status,
            message,
            only_from=(*ON_CHILD, "queued"),
            **values,
        )
        if moved is None:
            log.error("job %s was changed behind its runner's back", job.id)

    async def _discard(self, folder: JobFolder, version: AdapterVersion | None) -> None:
        await self.discard_files(folder)
        if version is None:
            return
        try:
            await asyncio.to_thread(
                self._registry.remove, version.name, version.version, force=True
            )
        except NotFound:
            return
        except Conflict as error:  # somebody has come to rely on it meanwhile
            log.warning("%s", error)
            return
        await self._audit_server("adapter.remove", version.id)

    def _find_version(self, job: JobRow, published: dict[str, Any]) -> AdapterVersion | None:
        """The version that this job registered, even if it died before it could say so."""
        if isinstance(reference := published.get("adapter"), str):
            with contextlib.suppress(NotFound, InvalidName):
                return self._registry.resolve(parse_ref(reference))
        wanted = description_of(job)
        for version in self._registry.list():
            manifest = version.manifest
            if version.name != job.name or manifest.origin != "trained":
                continue
            if manifest.settings.get("description") == wanted:
                return version
        return None

    async def _audit_server(self, action: str, subject: str, **detail: Any) -> None:
        await asyncio.to_thread(self._audit.record, SERVER, action, subject, **detail)
