"""From a training child's progress lines to a job's record. Knows no process.

Lines may come a thousand times a second; the record grows by at most one metrics event a second and
a few hundred per job. ``progress.jsonl`` keeps every line.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from server.jobs.patience import IsOver, Patience
from server.jobs.remarks import remark_on
from server.jobs.states import Evidence
from server.jobs.store import JobStore
from server.tables import JobRow

MIN_INTERVAL_S = 1.0
MAX_METRICS_EVENTS = 500  # per job and kind


class Throttle:
    """Lets through at most one event per second, and about ``MAX_METRICS_EVENTS`` over a job."""

    def __init__(self) -> None:
        self._at = -MIN_INTERVAL_S
        self._step: float | None = None

    def allows(self, step: int, total_steps: int | None) -> bool:
        if total_steps is not None and step >= total_steps:
            return True  # the last one always counts
        now = time.monotonic()
        if self._step is not None and step - self._step < (total_steps or 0) / MAX_METRICS_EVENTS:
            return False
        if now - self._at < MIN_INTERVAL_S:
            return False
        self._at, self._step = now, step
        return True


class EventRecorder:
    """Stores what one run says and collects the evidence for its end."""

    def __init__(self, store: JobStore, job: JobRow, patience: Patience, is_over: IsOver) -> None:
        self.evidence = Evidence()
        self._store = store
        self._patience = patience
        self._is_over = is_over
        self._job_id = job.id
        self._tokens_before = job.trained_tokens or 0  # by earlier runs of a resumed job
        self._total_steps: int | None = None
        self._progress = Throttle()
        self._evaluated = Throttle()
        self._losses: dict[str, Any] = {}  # the latest, for checkpoints

    async def handle(self, event: dict[str, Any]) -> None:
        """Record one event, however long it takes; kinds that we do not know are ignored.

        Raises StorageError if it cannot be recorded and the server stops.
        """
        self.evidence.add(event)
        match event.get("event"):
            case "started":
                await self._started(event)
            case "progress":
                await self._progressed(event)
            case "evaluated":
                await self._was_evaluated(event)
            case "checkpoint":
                await self._saved(event)
            case _:
                await self._remarked(event)

    async def _remarked(self, event: dict[str, Any]) -> None:
        remark = remark_on(event)
        if remark is not None:
            await self._record(
                self._store.add_event,
                self._job_id,
                remark.message,
                level=remark.level,
                payload=remark.data,
            )

    async def _started(self, event: dict[str, Any]) -> None:
        self._total_steps = _integer(event.get("total_steps"))
        facts = {key: value for key, value in event.items() if key not in ("event", "pid")}
        message = (
            f"Training started: {event.get('num_train')} training, {event.get('num_validation')} "
            f"validation and {event.get('num_test')} test examples, {self._total_steps} steps"
        )
        await self._record(
            self._store.move,
            self._job_id,
            "running",
            message,
            only_from=("validating_files",),
            payload=facts,
        )

    async def _progressed(self, event: dict[str, Any]) -> None:
        step = _integer(event.get("step"))
        if step is None:
            return
        total = self._total_steps = _integer(event.get("total_steps")) or self._total_steps
        self._losses["train_loss"] = event.get("loss")
        if not self._progress.allows(step, total):
            return
        renamed = {"loss": "train_loss"}
        metrics = {renamed.get(key, key): event[key] for key in event if key != "event"}
        values: dict[str, Any] = {"progress": metrics}
        eta_s = event.get("eta_s")
        if isinstance(eta_s, int | float):
            values["estimated_finish"] = time.time() + eta_s
        if (tokens := _integer(event.get("trained_tokens"))) is not None:
            values["trained_tokens"] = self._tokens_before + tokens
        message = f"Step {step}/{total}: training loss={_shown(event.get('loss'))}"
        await self._add(message, "metrics", metrics, **values)

    async def _was_evaluated(self, event: dict[str, Any]) -> None:
        step, loss = _integer(event.get("step")), event.get("validation_loss")
        self._losses["valid_loss"] = loss
        if step is None or not self._evaluated.allows(step, self._total_steps):
            return
        message = f"Step {step}/{self._total_steps}: validation loss={_shown(loss)}"
        await self._add(message, "metrics", {"step": step, "valid_loss": loss})

    async def _saved(self, event: dict[str, Any]) -> None:
        step = _integer(event.get("step"))
        if step is None:
            return
        metrics = {"step": step, **self._losses}
        await self._record(self._store.add_checkpoint, self._job_id, step, metrics)

    async def _add(self, message: str, type: str, payload: dict[str, Any], **values: Any) -> None:
        await self._record(
            self._store.add_event, self._job_id, message, type=type, payload=payload, **values
        )

    async def _record(self, write: Callable[..., Any], *arguments: Any, **values: Any) -> None:
        await self._patience.outlast(
            lambda: asyncio.to_thread(write, *arguments, **values), self._is_over
        )


def _integer(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _shown(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else "unknown"
