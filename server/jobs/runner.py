"""The queue of fine-tuning jobs: who runs, who waits, and what a start or stop does to them.

Knows nothing of how training works (``server.jobs.run`` follows the child, ``server.jobs.end``
concludes) and no HTTP. All methods run on one event loop; every database write in a thread.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, replace
from typing import Any

from artifacts.errors import Conflict, StorageError
from artifacts.home import Home
from server.files import FileStore
from server.jobs.child import find_by_argument, stop_orphan
from server.jobs.data_files import DataFiles, MissingFile
from server.jobs.end import JobEnd, description_of
from server.jobs.folder import JobFolder
from server.jobs.patience import Patience, never
from server.jobs.pause_rule import PauseLimits
from server.jobs.pauses import FirstTokenP90, Pauses
from server.jobs.progress import ProgressFile
from server.jobs.run import ChildPlan, JobRun, ended_values
from server.jobs.states import ON_CHILD, RESUMABLE, Evidence, Outcome, Stopping, decide
from server.jobs.store import JobStore
from server.names import parse_checkpoint_model_id
from server.tables import JobRow
from server.trouble import Trouble

log = logging.getLogger("loraloop.server")

KEPT_CHECKPOINTS = 3  # of a job, as OpenAI keeps them
CANCEL_GRACE_S = 5.0  # nothing of a cancelled run is kept, so it need not finish a checkpoint


@dataclass(frozen=True, slots=True)
class JobLimits:
    """What the operator allows training to take."""

    child: ChildPlan
    num_threads: int
    max_running: int
    stop_grace_s: float
    resume_interrupted: bool
    pauses: PauseLimits


class JobRunner:
    """Runs queued jobs, ``max_running`` at a time, oldest first."""

    def __init__(
        self,
        home: Home,
        store: JobStore,
        files: FileStore,
        end: JobEnd,
        limits: JobLimits,
        first_token_p90_s: FirstTokenP90,
    ) -> None:
        self.store = store
        self._home = home
        self._files = files
        self._end = end
        self._limits = limits
        self._runs: dict[str, JobRun] = {}
        self._pauses = Pauses(limits.pauses, first_token_p90_s, self._runs.values)
        self._tasks: set[asyncio.Task[None]] = set()
        self._patience = Patience()
        self._wake = asyncio.Event()
        self._background: list[asyncio.Task[None]] = []

    # --- life ---

    async def start(self) -> None:
        """Settle what a former server left and begin with the queue, in the background."""
        self._background = [
            asyncio.create_task(self._run_queue(), name="fine-tuning queue"),
            asyncio.create_task(self._pauses.watch(), name="training pauses"),
        ]

    async def stop(self) -> None:
        """Checkpoint what runs and mark it interrupted; takes little more than the grace time."""
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        grace_s = self._limits.stop_grace_s
        await asyncio.gather(*(run.stop("shutdown", grace_s) for run in self._runs.values()))
        if self._tasks:
            await asyncio.wait(self._tasks)

    @property
    def trouble(self) -> Trouble:
        """What keeps jobs from being recorded."""
        return self._patience.trouble

    def report(self) -> dict[str, Any]:
        """What training does to the machine, for statistics."""
        return {"running": len(self._runs), **self._pauses.report()}

    async def _run_queue(self) -> None:
        has_recovered = False
        while True:
            try:
                if not has_recovered:
                    await self._patience.outlast(self._recover, never)
                    has_recovered = True
                await self._patience.outlast(self._start_next, never)
            except Exception:  # a bug of ours: everything is on record, try again
                log.exception("the job queue could not be read")
                asyncio.get_running_loop().call_later(1.0, self._wake.set)
            await self._wake.wait()
            self._wake.clear()

    async def _start_next(self) -> None:
        while len(self._runs) < self._limits.max_running:
            queued = await asyncio.to_thread(self.store.in_status, ("queued",))
            waiting = [job for job in queued if job.id not in self._runs]
            if not waiting:
                return
            job, plan = waiting[0], self._limits.child
            run = JobRun(job, self.folder(job.id), self.store, plan, self._patience)
            self._runs[run.job.id] = run
            task = asyncio.create_task(self._carry_out(run), name=f"job {run.job.id}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _carry_out(self, run: JobRun) -> None:
        """From the queue to a recorded end, whatever happens in between."""
        job, outlast = run.job, self._patience.outlast
        try:
            moved = await outlast(lambda: asyncio.to_thread(self._begin, job), run.is_leaving)
            if moved is not None:  # else it was cancelled or paused a moment ago
                outcome = await self._train(run)
                await outlast(lambda: self._end.conclude(job, run.folder, outcome), run.is_leaving)
        except StorageError as error:
            log.error("job %s is left to the next start as it is on record: %s", job.id, error)
        except Exception as error:
            log.exception("job %s failed in the server", job.id)
            await self._give_up(run, error)
        finally:
            del self._runs[job.id]
            run.ended.set()
            self._wake.set()

    def _begin(self, job: JobRow) -> JobRow | None:
        return self.store.move(
            job.id,
            "validating_files",
            "Validating training file: " + job.training_file,
            only_from=("queued",),
            started_at=time.time(),
            stopping=None,
            error=None,
        )

    async def _train(self, run: JobRun) -> Outcome:
        try:
            data = await self._patience.outlast(
                lambda: asyncio.to_thread(DataFiles.of, run.job, self._files), run.is_leaving
            )
        except MissingFile as problem:
            return Outcome("failed", error=problem.error)
        outcome = await run.follow(self._config(run.job, data))
        if outcome.error is None:
            return outcome
        return replace(outcome, error=data.in_their_words(outcome.error))

    async def _give_up(self, run: JobRun, error: Exception) -> None:
        reason = f"The server failed on this job ({type(error).__name__}); its log says more."
        try:
            await self._patience.outlast(
                lambda: self._end.give_up(run.job, run.folder, reason), run.is_leaving
            )
        except Exception:  # even that: it stays on record as running, the next start settles it
            log.exception("job %s could not be marked failed", run.job.id)

    async def _recover(self) -> None:
        """Settle jobs that were running when a former server died."""
        for job in await asyncio.to_thread(self.store.in_status, ON_CHILD):
            try:
                await self._settle(job)
            except StorageError:
                raise  # all of it is tried again
            except Exception:
                log.exception("job %s of a former server could not be settled", job.id)
        for job in await asyncio.to_thread(self.store.in_status, ("failed", "cancelled")):
            await self._end.discard_files(self.folder(job.id))
        if not self._limits.resume_interrupted:
            return
        for job in await asyncio.to_thread(self.store.in_status, ("interrupted",)):
            await self.resume(job.id)

    async def _settle(self, job: JobRow) -> None:
        folder = self.folder(job.id)
        child: tuple[int, float] | None
        if job.pid is not None and job.pid_started_at is not None:
            child = (job.pid, job.pid_started_at)
        else:  # the server died while it was starting the child
            child = await asyncio.to_thread(find_by_argument, str(folder.config))
        if child is not None and await stop_orphan(*child, self._limits.stop_grace_s):
            log.info("stopped training process %d of a former server", child[0])
        evidence = Evidence()
        for event in await asyncio.to_thread(ProgressFile(folder.progress).read_all):
            evidence.add(event)
        outcome = decide(evidence, None, job.stopping or "shutdown", "")
        await self._end.conclude(job, folder, outcome)

    # --- what clients ask ---

    async def create(self, job: JobRow) -> JobRow:
        """Put a job at the end of the queue. Raises InvalidInput if its file is gone."""
        job = await asyncio.to_thread(self.store.create, job)
        self._wake.set()
        return job

    async def cancel(self, job_id: str) -> JobRow:
        """End a job and remove what it has made so far. Raises NotFound, Conflict if it ended."""
        moved = await asyncio.to_thread(
            self.store.move,
            job_id,
            "cancelled",
            "The job was cancelled.",
            only_from=("queued", *RESUMABLE),
            **ended_values(),
        )
        if moved is not None:
            await self._end.discard_files(self.folder(job_id))
            return moved
        await self._stop(job_id, "cancel", CANCEL_GRACE_S)
        job = await asyncio.to_thread(self.store.get, job_id)
        if job.status != "cancelled":
            raise Conflict(f"Job {job_id} has {job.status} and cannot be cancelled any more.")
        return job

    async def pause(self, job_id: str) -> JobRow:
        """Stop a job and keep its checkpoints. Raises NotFound, Conflict if it ended."""
        moved = await asyncio.to_thread(
            self.store.move, job_id, "paused", "The job was paused.", only_from=("queued",)
        )
        if moved is not None:
            return moved
        await self._stop(job_id, "pause", self._limits.stop_grace_s)
        job = await asyncio.to_thread(self.store.get, job_id)
        if job.status not in RESUMABLE:
            raise Conflict(f"Job {job_id} is {job.status} and cannot be paused.")
        return job

    async def resume(self, job_id: str) -> JobRow:
        """Queue a paused or interrupted job again. Raises NotFound, Conflict for other states."""
        job = await asyncio.to_thread(self.store.get, job_id)
        moved = await asyncio.to_thread(
            self.store.move,
            job_id,
            "queued",
            "The job was resumed.",
            only_from=RESUMABLE,
            resumed=job.resumed + 1,
        )
        if moved is None:
            raise Conflict(
                f"Job {job_id} is {job.status}: only a paused or interrupted job can be resumed."
            )
        self._wake.set()
        return moved

    def folder(self, job_id: str) -> JobFolder:
        return JobFolder(self._home.jobs / job_id)

    async def _stop(self, job_id: str, why: Stopping, grace_s: float) -> None:
        run = self._runs.get(job_id)
        if run is not None:
            await run.stop(why, grace_s)
            await run.ended.wait()

    def _config(self, job: JobRow, data: DataFiles) -> dict[str, Any]:
        return {
            "name": job.name,
            "base": self._limits.child.base_source,
            **data.config(),
            "home": str(self._home.root),
            "output_dir": str(self.folder(job.id).work),
            "description": description_of(job),
            "num_threads": self._limits.num_threads,
            "resume": True,  # from the last checkpoint, if there is one
            "kept_checkpoints": KEPT_CHECKPOINTS,
            "seed": job.seed,
            **job.settings,
            **self._start(job),
        }

    def _start(self, job: JobRow) -> dict[str, Any]:
        """Where a job on a checkpoint begins; training knows no job's ids."""
        wanted = parse_checkpoint_model_id(job.settings.get("start_from", ""))
        if wanted is None:
            return {}
        return {"start_from": str(self.folder(wanted.job_id).checkpoint(wanted.step))}
