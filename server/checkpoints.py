"""Checkpoints of fine-tuning jobs as models: ``ft:<base>:loraloop:<name>:<job>:ckpt-step-N``.

They lie in their job's folder and in no registry: no alias and no experiment points to one, and
they go with the job. They pass the same load gate as versions; no quality gate has seen them.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from artifacts.catalog import AdapterVersion
from artifacts.errors import NotFound
from artifacts.manifest import CHECKPOINT_FILE, AdapterManifest, ManifestDraft
from artifacts.storage import storage_errors
from server.jobs.folder import JobFolder
from server.names import CheckpointId, checkpoint_model_id

UNGATED = "ungated"


@dataclass(frozen=True)
class CheckpointVersion(AdapterVersion):
    """A checkpoint where a version is expected; ``version`` is its step."""

    model_id: str

    @property
    def id(self) -> str:
        return self.model_id


def open_checkpoint(jobs: Path, wanted: CheckpointId) -> CheckpointVersion:
    """The checkpoint of a job below ``jobs``. Blocks on the disk.

    Raises NotFound if it is not kept, or belongs to another adapter name, and StorageError.
    """
    path = JobFolder(jobs / wanted.job_id).checkpoint(wanted.step)
    model_id = checkpoint_model_id(wanted.base_id, wanted.name, wanted.job_id, wanted.step)
    try:
        with storage_errors(path):
            record = path / CHECKPOINT_FILE
            draft = ManifestDraft.model_validate_json(record.read_bytes())
            created_at = datetime.fromtimestamp(record.stat().st_mtime, UTC)
        if draft.settings.get("name") != wanted.name:
            raise FileNotFoundError(path)
    except (OSError, ValidationError):
        raise NotFound(
            f"Job {wanted.job_id} keeps no checkpoint of step {wanted.step}: "
            f"GET /v1/fine_tuning/jobs/{wanted.job_id}/checkpoints lists those it keeps."
        ) from None
    manifest = AdapterManifest(
        **draft.model_dump(),
        name=wanted.name,
        version=wanted.step,
        created_at=created_at.isoformat(timespec="seconds"),
    )
    return CheckpointVersion(wanted.name, wanted.step, path, draft.content_hash, manifest, model_id)
