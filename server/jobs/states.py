"""The life of a fine-tuning job as pure rules: states, and what a finished child process means.

Knows no database, no process and no HTTP.

    queued → validating_files → running → succeeded | failed | cancelled
       ↑            └──────────────┴────→ paused | interrupted ──→ queued (resume), cancelled
       └─ paused (before it ever ran)

``paused`` was asked for; ``interrupted`` happened to it (server shutdown or crash). Both keep their
checkpoints. OpenAI has no word for the latter, so clients see it as ``paused`` too, with the true
word in the job's ``loraloop.status``.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal[
    "validating_files",
    "queued",
    "running",
    "paused",
    "interrupted",
    "succeeded",
    "failed",
    "cancelled",
]
Stopping = Literal["cancel", "pause", "shutdown"]

ON_CHILD: tuple[Status, ...] = ("validating_files", "running")  # a child process works on it
RESUMABLE: tuple[Status, ...] = ("paused", "interrupted")
ENDED: tuple[Status, ...] = ("succeeded", "failed", "cancelled")
UNFINISHED: tuple[Status, ...] = (*ON_CHILD, "queued", *RESUMABLE)

EXIT_INTERRUPTED = 3  # training's exit code after SIGTERM: a checkpoint was kept
EXIT_STORAGE = 4  # the disk or the database failed under it: checkpoints were kept
BAD_DATA = "invalid_training_file"
_MAX_ROWS_SHOWN = 20


@dataclass
class Evidence:
    """What a child's progress lines have said so far, in one run."""

    published: dict[str, Any] | None = None
    failed: dict[str, Any] | None = None
    interrupted: dict[str, Any] | None = None
    started: dict[str, Any] | None = None

    def add(self, event: dict[str, Any]) -> None:
        kind = event.get("event")
        if kind == "run":  # a new run begins in the same file
            self.published = self.failed = self.interrupted = self.started = None
        elif kind in ("published", "failed", "interrupted", "started"):
            setattr(self, kind, event)


@dataclass(frozen=True, slots=True)
class JobError:
    """OpenAI's ``error`` of a job, and the rows at fault: file, line, reason."""

    code: str
    message: str
    param: str | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended. ``publish`` means: a version exists and must now pass the load gate."""

    status: Literal["publish", "failed", "cancelled", "paused", "interrupted"]
    error: JobError | None = None
    published: dict[str, Any] = field(default_factory=dict)


def decide(
    evidence: Evidence,
    exit_code: int | None,
    stopping: str | None,
    last_lines: str,
    killed_for: JobError | None = None,
) -> Outcome:
    """What became of a run whose child has ended.

    Args:
        exit_code: negative is a signal; None: unknown, the child belonged to a former server.
        stopping: why we asked it to stop, if we did.
        last_lines: the end of its log, for the message.
        killed_for: why we killed it, if we did.
    """
    if stopping == "cancel":
        return Outcome("cancelled", published=evidence.published or {})
    if evidence.published is not None:  # it finished before it noticed that it should stop
        return Outcome("publish", published=evidence.published)
    if exit_code == EXIT_STORAGE and stopping is None:
        return Outcome("interrupted", error=_storage_error(evidence.failed, last_lines))
    if evidence.failed is not None and exit_code != EXIT_STORAGE:
        return Outcome("failed", error=reported_error(evidence.failed))
    if killed_for is not None:
        return Outcome("failed", error=killed_for)
    if stopping == "pause":
        return Outcome("paused")
    if stopping == "shutdown" or exit_code == EXIT_INTERRUPTED or evidence.interrupted:
        return Outcome("interrupted")
    return Outcome("failed", error=_silent_death(exit_code, last_lines))


def _storage_error(event: dict[str, Any] | None, last_lines: str) -> JobError:
    if event is not None:
        return reported_error(event)
    # A full disk may have taken its last words as well.
    return JobError("storage", f"The disk or the database failed while it trained.\n{last_lines}")


def reported_error(event: dict[str, Any]) -> JobError:
    """The error of a ``failed`` event, its bad rows as ``file:line: reason`` below the message."""
    code = str(event.get("code", "internal"))
    lines = [str(event.get("message") or "training failed without saying why")]
    rows = event.get("rows")
    rows = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    for row in rows[:_MAX_ROWS_SHOWN]:
        line = f"{row.get('file')}:{row.get('line')}: {row.get('reason')}"
        if line not in lines[0]:
            lines.append(line)
    if len(rows) > _MAX_ROWS_SHOWN:
        lines.append(f"… and {len(rows) - _MAX_ROWS_SHOWN} more rows")
    is_data = code == "invalid_data"
    key = event.get("param")
    param = f"loraloop.{key}" if code == "invalid_config" and isinstance(key, str) else None
    return JobError(
        BAD_DATA if is_data else code,
        "\n".join(lines),
        "training_file" if is_data else param,
        rows,
    )


def _silent_death(exit_code: int | None, last_lines: str) -> JobError:
    tail = f"\nIts last words were:\n{last_lines}" if last_lines else "\nIt left no log."
    if exit_code is not None and exit_code < 0:
        try:
            name = signal.Signals(-exit_code).name
        except ValueError:
            name = "unknown"
        message = f"The training process was killed by signal {-exit_code} ({name})."
        if -exit_code == signal.SIGKILL:
            message += " Out of memory is the usual cause: try a smaller batch_size or max_length."
        return JobError("killed", message + tail)
    if exit_code == 0:
        return JobError("internal", "The training process ended without publishing." + tail)
    return JobError("internal", f"The training process ended with exit code {exit_code}." + tail)
