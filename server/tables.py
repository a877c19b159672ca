"""What the server stores beside the adapter registry: rows only, no behaviour.

Times are seconds since the epoch. JSON columns hold what the API shows; nothing searches in them.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, Float, ForeignKey, Index, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from artifacts.database import Table


class FileRow(Table):
    """One uploaded file; its bytes lie in ``LORALOOP_HOME/files/<id><suffix>``."""

    __tablename__ = "files"

    sequence: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(64), unique=True)
    filename: Mapped[str] = mapped_column(Text)
    suffix: Mapped[str] = mapped_column(String(16))
    purpose: Mapped[str] = mapped_column(String(32))
    num_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[float] = mapped_column(Float)


class JobRow(Table):
    """One fine-tuning job. ``status`` is ours; ``server.jobs.view`` maps it to OpenAI's words."""

    __tablename__ = "fine_tuning_jobs"

    sequence: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(64), unique=True)
    status: Mapped[str] = mapped_column(String(24), index=True)
    # Set while a running job is being stopped: "cancel", "pause" or "shutdown". Survives a crash,
    # so that a job whose cancellation was accepted is never resumed.
    stopping: Mapped[str | None] = mapped_column(String(16), default=None)
    name: Mapped[str] = mapped_column(String(64))  # the adapter's
    model: Mapped[str] = mapped_column(Text)  # the base id
    training_file: Mapped[str] = mapped_column(String(64))
    validation_file: Mapped[str | None] = mapped_column(String(64), default=None)
    hyperparameters: Mapped[dict[str, Any]] = mapped_column(JSON)  # as asked; "auto" where not
    settings: Mapped[dict[str, Any]] = mapped_column(JSON)  # training configuration keys
    seed: Mapped[int] = mapped_column(Integer)
    user_metadata: Mapped[dict[str, str] | None] = mapped_column("metadata", JSON, default=None)
    created_at: Mapped[float] = mapped_column(Float)
    queued_at: Mapped[float] = mapped_column(Float)  # the queue's order; about when, not exactly
    started_at: Mapped[float | None] = mapped_column(Float, default=None)  # of the latest run
    finished_at: Mapped[float | None] = mapped_column(Float, default=None)
    resumed: Mapped[int] = mapped_column(Integer, default=0)  # how often
    pid: Mapped[int | None] = mapped_column(Integer, default=None)
    pid_started_at: Mapped[float | None] = mapped_column(Float, default=None)  # after boot
    estimated_finish: Mapped[float | None] = mapped_column(Float, default=None)
    trained_tokens: Mapped[int | None] = mapped_column(BigInteger, default=None)
    progress: Mapped[dict[str, Any] | None] = mapped_column(JSON, default=None)  # the latest
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON, default=None)
    version: Mapped[int | None] = mapped_column(Integer, default=None)  # of the adapter it made
    result: Mapped[dict[str, Any] | None] = mapped_column(JSON, default=None)  # metrics, load_s


class JobEventRow(Table):
    """One line of a job's history, oldest first by ``sequence``."""

    __tablename__ = "fine_tuning_events"
    __table_args__ = (Index("fine_tuning_events_of_job", "job_id", "sequence"),)

    sequence: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("fine_tuning_jobs.id"))
    created_at: Mapped[float] = mapped_column(Float)
    level: Mapped[str] = mapped_column(String(8))  # info, warn, error
    type: Mapped[str] = mapped_column(String(16))  # message, metrics
    message: Mapped[str] = mapped_column(Text)
    payload: Mapped[dict[str, Any] | None] = mapped_column(JSON, default=None)


class CheckpointRow(Table):
    """A checkpoint that a job's training process reported."""

    __tablename__ = "fine_tuning_checkpoints"
    __table_args__ = (Index("fine_tuning_checkpoints_of_job", "job_id", "sequence"),)

    sequence: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(64), unique=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("fine_tuning_jobs.id"))
    created_at: Mapped[float] = mapped_column(Float)
    step: Mapped[int] = mapped_column(Integer)
    metrics: Mapped[dict[str, Any]] = mapped_column(JSON)


class ExperimentRow(Table):
    """A running split. ``segments`` is what makes assignments stick across re-weighting."""

    __tablename__ = "experiments"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    salt: Mapped[str] = mapped_column(String(32))
    arms: Mapped[list[dict[str, Any]]] = mapped_column(JSON)  # [{"model", "weight"}]
    segments: Mapped[list[list[Any]]] = mapped_column(JSON)  # [[end, model], …]
    created_at: Mapped[float] = mapped_column(Float)
    updated_at: Mapped[float] = mapped_column(Float)


class AnswerRow(Table):
    """Which model gave which answer; what feedback refers to. The oldest rows are pruned."""

    __tablename__ = "answers"

    sequence: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(80), unique=True)
    model: Mapped[str] = mapped_column(Text)
    experiment: Mapped[str | None] = mapped_column(String(64), default=None)
    arm: Mapped[str | None] = mapped_column(Text, default=None)
    subject: Mapped[str | None] = mapped_column(Text, default=None)
    created_at: Mapped[float] = mapped_column(Float)


class FeedbackRow(Table):
    """One score per answer; a second one replaces it. Keeps the arm, as answers are pruned."""

    __tablename__ = "feedback"

    answer_id: Mapped[str] = mapped_column(String(80), primary_key=True)
    score: Mapped[float] = mapped_column(Float)
    comment: Mapped[str | None] = mapped_column(Text, default=None)
    model: Mapped[str] = mapped_column(Text)
    experiment: Mapped[str | None] = mapped_column(String(64), default=None)
    arm: Mapped[str | None] = mapped_column(Text, default=None)
    subject: Mapped[str | None] = mapped_column(Text, default=None)
    created_at: Mapped[float] = mapped_column(Float)
    updated_at: Mapped[float] = mapped_column(Float)


class ResponseRow(Table):
    """A stored response of the Responses API. The oldest rows are pruned."""

    __tablename__ = "responses"

    sequence: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    id: Mapped[str] = mapped_column(String(80), unique=True)
    owner: Mapped[str] = mapped_column(String(16))  # whose key made it, as ``auth.key_id_of`` says
    previous_id: Mapped[str | None] = mapped_column(String(80), default=None)
    input: Mapped[str] = mapped_column(Text)  # JSON: the items of its own input
    response: Mapped[str] = mapped_column(Text)  # JSON, as it was sent
    created_at: Mapped[float] = mapped_column(Float)
