"""Jobs, events and checkpoints in OpenAI's JSON. Knows no database and no HTTP.

What OpenAI's objects have no field for stands under ``loraloop``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.checkpoints import UNGATED
from server.jobs.results import results_file_id
from server.jobs.store import event_id
from server.names import checkpoint_model_id, fine_tuned_model_id
from server.tables import CheckpointRow, JobEventRow, JobRow

ORGANISATION = "loraloop"


def job_json(job: JobRow, places: Mapping[str, int]) -> dict[str, Any]:
    """A ``fine_tuning.job``; ``places`` are those of the queue."""
    objective = "dpo" if job.settings.get("objective") == "dpo" else "supervised"
    error = job.error or {}
    # A failed job has a version where only its gate failed: it answers when asked by its number.
    version = job.version if job.status in ("succeeded", "failed") else None
    model = version and fine_tuned_model_id(job.model, job.name, version)
    return {
        "id": job.id,
        "object": "fine_tuning.job",
        "created_at": int(job.created_at),
        "error": job.error and {key: error.get(key) for key in ("code", "message", "param")},
        "fine_tuned_model": model if job.status == "succeeded" else None,
        "finished_at": _seconds(job.finished_at),
        "hyperparameters": job.hyperparameters,
        "method": {"type": objective, objective: {"hyperparameters": job.hyperparameters}},
        "model": job.settings.get("start_from", job.model),
        "organization_id": ORGANISATION,
        "result_files": [results_file_id(job.id)] if version else [],
        "seed": job.seed,
        # OpenAI has no word for a job that its server left behind; it can be resumed all the same.
        "status": "paused" if job.status == "interrupted" else job.status,
        "trained_tokens": job.trained_tokens,
        "training_file": job.training_file,
        "validation_file": job.validation_file,
        "estimated_finish": _seconds(job.estimated_finish),
        "integrations": [],
        "metadata": job.user_metadata,
        "loraloop": {
            "status": job.status,
            "queue_position": places.get(job.id),
            "rows": error.get("rows", []),
            "name": job.name,
            "adapter": version and f"{job.name}@{version}",
            "settings": job.settings,
            "started_at": _seconds(job.started_at),
            "resumed": job.resumed,
            "pid": job.pid,
            "progress": job.progress,
            "result": job.result,
        },
    }


def event_json(event: JobEventRow) -> dict[str, Any]:
    """A ``fine_tuning.job.event``."""
    return {
        "id": event_id(event),
        "object": "fine_tuning.job.event",
        "created_at": int(event.created_at),
        "level": event.level,
        "message": event.message,
        "type": event.type,
        "data": event.payload,
    }


def checkpoint_json(row: CheckpointRow, job: JobRow) -> dict[str, Any]:
    """A ``fine_tuning.job.checkpoint``. Chat requests take its model id; no gate has seen it."""
    return {
        "id": row.id,
        "object": "fine_tuning.job.checkpoint",
        "created_at": int(row.created_at),
        "fine_tuned_model_checkpoint": checkpoint_model_id(job.model, job.name, job.id, row.step),
        "fine_tuning_job_id": job.id,
        "metrics": row.metrics,
        "step_number": row.step,
        "loraloop": {"marks": [UNGATED]},
    }


def _seconds(moment: float | None) -> int | None:
    return None if moment is None else int(moment)
