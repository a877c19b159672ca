"""What the operator's routes answer: files, jobs, adapters, experiments. For the document alone."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from server.document.replies import ExportFacts, Reply


class Page(Reply):
    """A part of a list; ``after`` with its last id continues it."""

    object: Literal["list"]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileFacts(Reply):
    sha256: str


class File(Reply):
    """An uploaded file."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: Literal["processed"]
    status_details: None
    expires_at: None
    loraloop: FileFacts


class FileList(Page):
    data: list[File]


class FileDeleted(Reply):
    id: str
    object: Literal["file"]
    deleted: Literal[True]


class FineTuningJob(Reply):
    """OpenAI's job; what it has no field for stands under ``loraloop``."""

    id: str
    object: Literal["fine_tuning.job"]
    created_at: int
    error: dict[str, Any] | None
    fine_tuned_model: str | None
    finished_at: int | None
    hyperparameters: dict[str, Any]
    method: dict[str, Any]
    model: str
    organization_id: str
    result_files: list[str]
    seed: int
    status: str
    trained_tokens: int | None
    training_file: str
    validation_file: str | None
    estimated_finish: int | None
    integrations: list[Any]
    metadata: dict[str, str] | None
    loraloop: dict[str, Any]


class FineTuningJobList(Page):
    data: list[FineTuningJob]


class JobEvent(Reply):
    id: str
    object: Literal["fine_tuning.job.event"]
    created_at: int
    level: str
    message: str
    type: str
    data: dict[str, Any] | None


class JobEventList(Page):
    data: list[JobEvent]


class Checkpoint(Reply):
    id: str
    object: Literal["fine_tuning.job.checkpoint"]
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    metrics: dict[str, Any]
    step_number: int
    loraloop: dict[str, Any]


class CheckpointList(Page):
    data: list[Checkpoint]


class CheckpointDeleted(Reply):
    id: str
    object: Literal["fine_tuning.job.checkpoint"]
    deleted: Literal[True]


class AdapterPlace(Reply):
    loaded: bool
    resident: bool
    running_requests: int
    resident_bytes: int
    load_s: float | None


class Adapter(Reply):
    """One registered version."""

    id: str
    object: Literal["adapter"]
    name: str
    version: int
    aliases: list[str]
    content_hash: str
    base: str
    origin: str
    marks: list[str]
    rank: int
    alpha: float
    target_modules: list[str]
    num_parameters: int
    bytes: int
    metrics: dict[str, Any]
    gate: str | None
    gates: list[dict[str, Any]]
    created_at: str
    state: AdapterPlace
    load_s: float = Field(0.0, description="what loading it took, where it was loaded just now")


class AdapterList(Reply):
    object: Literal["list"]
    data: list[Adapter]
    aliases: dict[str, dict[str, int]]


class Alias(Reply):
    """``before`` and ``load_s`` where it was set just now."""

    name: str
    alias: str
    object: Literal["alias"]
    version: int
    id: str
    before: int | None = None
    load_s: float = 0.0


class AliasList(Reply):
    object: Literal["list"]
    name: str
    data: dict[str, int]


class AliasDeleted(Reply):
    name: str
    alias: str
    object: Literal["alias"]
    deleted: Literal[True]


class ExperimentArm(Reply):
    model: str
    weight: float
    share: float


class Experiment(Reply):
    """A running split of a name's traffic."""

    name: str
    object: Literal["experiment"]
    arms: list[ExperimentArm]
    salt: str
    created_at: int
    updated_at: int


class ExperimentList(Reply):
    object: Literal["list"]
    data: list[Experiment]


class ExperimentDeleted(Reply):
    name: str
    object: Literal["experiment"]
    deleted: Literal[True]


class Feedback(Reply):
    """A scored answer."""

    id: str
    object: Literal["feedback"]
    score: float
    comment: str | None
    model: str
    experiment: str | None
    arm: str | None
    created_at: int
    updated_at: int


class AuditEntry(Reply):
    id: int
    at: float
    who: str
    action: str
    subject: str
    detail: dict[str, Any]


class AuditTrail(Page):
    data: list[AuditEntry]
    first_id: int | None  # type: ignore[assignment]
    last_id: int | None  # type: ignore[assignment]


class Stats(BaseModel):
    """Speed, errors and memory, per adapter and per arm."""

    adapters: dict[str, dict[str, Any]]
    arms: dict[str, dict[str, Any]]
    memory: dict[str, Any]
    engine: dict[str, Any]
    training: dict[str, Any]
    problems: dict[str, str]
    admission: dict[str, Any]


class Peaks(Reply):
    """Memory, its peaks counted from now on."""

    memory: dict[str, Any]


class Live(Reply):
    status: Literal["live"]


class Ready(Reply):
    status: Literal["ready"]
    model: str
    problems: list[str] = Field(description="what fails while answers go on")
    export: ExportFacts | None = Field(None, description="where the base is an export")


class NotReady(Reply):
    status: Literal["not ready"]
    reason: str
