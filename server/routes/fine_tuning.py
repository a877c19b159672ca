"""/v1/fine_tuning/jobs: OpenAI's fine-tuning API. Training itself runs in a child process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field
from sse_starlette import EventSourceResponse, ServerSentEvent

from artifacts.errors import NotFound
from artifacts.storage import storage_errors
from server.answers.streaming import PING_S
from server.audit import who
from server.auth import Caller
from server.deps import Admin, ServerDep
from server.errors import ApiError
from server.exports import refuse_training
from server.jobs.request import CreateJob, job_of
from server.jobs.view import checkpoint_json, event_json, job_json
from server.paging import Order, Paging, list_json
from server.resolve import find_fixed
from server.routes.event_stream import follow_events
from server.routes.openapi import ERRORS, error
from server.state import Server
from server.tables import JobRow

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tuning"])

Limit = Annotated[int, Query(ge=1, le=1000)]
_NO_JOB: dict[int | str, dict[str, Any]] = {404: error("No such job.")}
_CONFLICT: dict[int | str, dict[str, Any]] = {
    **_NO_JOB,
    409: error("The job's state does not allow it."),
}


class EventsAsked(BaseModel):
    """Which events of a job, and how."""

    after: str | None = None
    limit: int | None = Field(None, ge=1, le=1000)
    order: Order | None = None
    stream: bool = False


@router.post("", summary="Start a fine-tuning job", responses={400: ERRORS[400]})
async def create_job(body: CreateJob, server: ServerDep, caller: Admin) -> dict[str, Any]:
    """Queues the job. ``suffix`` is the adapter's name, ``loraloop`` takes training's own keys."""
    refuse_training(server.base)
    start_from = await start_of(body.model, server)
    job = job_of(body, server.base.id, server.engine.max_rank, start_from)
    return await shown(await submit_job(server, caller, job), server)


async def submit_job(server: Server, caller: Caller, job: JobRow) -> JobRow:
    """Queue ``job`` on behalf of ``caller``."""
    job = await server.jobs.create(job)
    facts = {"name": job.name, "training_file": job.training_file}
    await asyncio.to_thread(server.audit.record, who(caller), "job.create", job.id, **facts)
    return job


@router.get("", summary="List fine-tuning jobs")
def list_jobs(
    request: Request,
    server: ServerDep,
    caller: Admin,
    after: str | None = None,
    limit: Limit = 20,
) -> dict[str, Any]:
    """Newest first. ``metadata[key]=value`` keeps those that carry it."""
    wanted = {
        name[len("metadata[") : -1]: value
        for name, value in request.query_params.items()
        if name.startswith("metadata[") and name.endswith("]")
    }
    page = server.jobs.store.page(Paging(after, limit), wanted)
    places = server.jobs.store.places()
    return list_json(page.map(lambda job: job_json(job, places)))


@router.get("/{job_id}", summary="Describe a job", responses=_NO_JOB)
def retrieve_job(job_id: str, server: ServerDep, caller: Admin) -> dict[str, Any]:
    return job_json(server.jobs.store.get(job_id), server.jobs.store.places())


@router.get("/{job_id}/events", summary="A job's history", responses=_NO_JOB)
async def list_events(
    job_id: str,
    request: Request,
    server: ServerDep,
    caller: Admin,
    asked: Annotated[EventsAsked, Query()],
) -> Any:
    """Pages: newest first, unless ``order=asc``. With ``stream=true`` or ``Accept:
    text/event-stream`` server-sent events, oldest first, each as it comes, until the job ends;
    ``after`` continues a stream that broke off."""
    store, after = server.jobs.store, asked.after
    if not asked.stream and "text/event-stream" not in request.headers.get("accept", ""):
        paging = Paging(after, 20 if asked.limit is None else asked.limit, asked.order or "desc")
        page = await asyncio.to_thread(store.events, job_id, paging)
        return list_json(page.map(event_json))
    for name, value in (("limit", asked.limit), ("order", asked.order)):
        if value is not None:
            message = f"{name} belongs to pages of events; leave it out of a stream."
            raise ApiError(400, message, param=name, code="invalid_combination")
    await asyncio.to_thread(store.events, job_id, Paging(after, 1, "asc"))  # or raises, as a page
    return EventSourceResponse(
        follow_events(server, job_id, after),
        ping=PING_S,
        ping_message_factory=lambda: ServerSentEvent(comment="ping", sep="\n"),
    )


@router.get("/{job_id}/checkpoints", summary="A job's checkpoints", responses=_NO_JOB)
def list_checkpoints(
    job_id: str,
    server: ServerDep,
    caller: Admin,
    after: str | None = None,
    limit: Limit = 10,
) -> dict[str, Any]:
    """Those whose adapters are kept, newest first. Each answers chats under its own model id."""
    job = server.jobs.store.get(job_id)
    steps = server.jobs.folder(job_id).kept_steps()
    page = server.jobs.store.checkpoints(job_id, Paging(after, limit), steps)
    return list_json(page.map(lambda row: checkpoint_json(row, job)))


@router.delete(
    "/{job_id}/checkpoints/{checkpoint_id}", summary="Delete a checkpoint", responses=_NO_JOB
)
def delete_checkpoint(
    job_id: str, checkpoint_id: str, server: ServerDep, caller: Admin
) -> dict[str, Any]:
    """Its adapter is gone from the disk; the job and its version stay."""
    row = server.jobs.store.checkpoint(job_id, checkpoint_id)
    folder = server.jobs.folder(job_id)
    with storage_errors(folder.root):
        if not folder.drop_checkpoint(row.step):
            raise NotFound(f"The adapter of checkpoint {checkpoint_id} is not kept any more.")
    server.audit.record(who(caller), "checkpoint.delete", checkpoint_id, job=job_id, step=row.step)
    return {"id": checkpoint_id, "object": "fine_tuning.job.checkpoint", "deleted": True}


@router.post("/{job_id}/cancel", summary="Cancel a job", responses=_CONFLICT)
async def cancel_job(job_id: str, server: ServerDep, caller: Admin) -> dict[str, Any]:
    """Answers when its process is gone and its checkpoints are deleted."""
    return await _change(server, caller, "job.cancel", server.jobs.cancel, job_id)


@router.post("/{job_id}/pause", summary="Pause a job", responses=_CONFLICT)
async def pause_job(job_id: str, server: ServerDep, caller: Admin) -> dict[str, Any]:
    """Answers when its checkpoint is written."""
    return await _change(server, caller, "job.pause", server.jobs.pause, job_id)


@router.post("/{job_id}/resume", summary="Resume a job", responses=_CONFLICT)
async def resume_job(job_id: str, server: ServerDep, caller: Admin) -> dict[str, Any]:
    """Queues a paused or interrupted job; it continues from its last checkpoint."""
    return await _change(server, caller, "job.resume", server.jobs.resume, job_id)


async def _change(
    server: Server,
    caller: Caller,
    action: str,
    change: Callable[[str], Awaitable[JobRow]],
    job_id: str,
) -> dict[str, Any]:
    job = await change(job_id)
    await asyncio.to_thread(server.audit.record, who(caller), action, job_id)
    return await shown(job, server)


async def shown(job: JobRow, server: Server) -> dict[str, Any]:
    """A job as its client sees it."""
    return job_json(job, await asyncio.to_thread(server.jobs.store.places))


async def start_of(model: str, server: Server, param: str = "model") -> str | None:
    """What a job on ``model`` starts from: a version, a checkpoint, or None for the base."""
    try:
        target = await find_fixed(model, server.base.id, server.catalog)
    except NotFound:
        message = f"The model {model!r} does not exist here; train on {server.base.id!r}."
        raise ApiError(404, message, param=param, code="model_not_found") from None
    return None if target.version is None else target.model_id
