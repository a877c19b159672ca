"""Fine-tuning through OpenAI's API: upload, create, follow the events to the end."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from demo.dataset import DataSet
from demo.processes import DemoFailed

POLL_S = 0.5


@dataclass(frozen=True)
class Trained:
    """A version that a job has made. Losses are held-out, per token."""

    id: str  # name@3
    fine_tuned_model: str  # ft:…
    base_loss: float
    adapter_loss: float
    base_perplexity: float
    adapter_perplexity: float
    load_s: float  # disk to answering
    finished_at: float  # unix seconds
    duration_s: float


def upload(client: OpenAI, dataset: DataSet) -> str:
    """The file's id."""
    with dataset.path.open("rb") as stream:
        return client.files.create(file=stream, purpose="fine-tune").id


def create(client: OpenAI, dataset: DataSet, file_id: str, settings: Mapping[str, Any]) -> str:
    """The id of a job that trains on the base; ``settings`` are training's own keys."""
    base = client.models.list().data[0].id
    job = client.fine_tuning.jobs.create(
        model=base,
        training_file=file_id,
        suffix=dataset.name,
        seed=7,
        extra_body={"loraloop": dict(settings)},
    )
    return job.id


def follow(client: OpenAI, console: Console, job_id: str) -> Trained:
    """Show the job's progress until it ends. Raises DemoFailed unless it succeeded."""
    started = time.monotonic()
    columns = (
        TextColumn("  {task.description:<12}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("queued", total=None, figures="")
        while True:
            job = client.fine_tuning.jobs.retrieve(job_id)
            show(client, progress, bar, job)
            if job.status in ("succeeded", "failed", "cancelled"):
                break
            time.sleep(POLL_S)
        progress.update(bar, description=job.status)
    if job.status != "succeeded":
        reason = job.error.message if job.error is not None else "no reason given"
        raise DemoFailed(f"the fine-tuning job {job.status}: {reason}")
    return trained(job, time.monotonic() - started)


def show(client: OpenAI, progress: Progress, bar: TaskID, job: FineTuningJob) -> None:
    """Put the newest metrics event on the bar."""
    progress.update(bar, description=job.status)
    newest = client.fine_tuning.jobs.list_events(job.id, limit=5).data
    for event in newest:
        metrics = event.data if isinstance(event.data, dict) else {}
        if "train_loss" not in metrics:
            continue
        eta_s = metrics.get("eta_s")
        eta = "" if eta_s is None else f"  ETA {eta_s:.0f} s"
        figures = f"loss {metrics['train_loss']:.3f}{eta}"
        step, total = metrics.get("step", 0), metrics.get("total_steps")
        progress.update(bar, completed=step, total=total, figures=figures)
        return


def trained(job: FineTuningJob, duration_s: float) -> Trained:
    """The facts of a succeeded job, from its own record."""
    extra: dict[str, Any] = (job.model_extra or {}).get("loraloop") or {}
    result = extra["result"]
    metrics = result["metrics"]
    assert job.fine_tuned_model is not None
    assert job.finished_at is not None
    return Trained(
        id=extra["adapter"],
        fine_tuned_model=job.fine_tuned_model,
        base_loss=metrics["base_loss"],
        adapter_loss=metrics["adapter_loss"],
        base_perplexity=metrics["base_perplexity"],
        adapter_perplexity=metrics["adapter_perplexity"],
        load_s=result["load_s"],
        finished_at=job.finished_at,
        duration_s=duration_s,
    )
