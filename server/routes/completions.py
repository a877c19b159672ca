"""POST /v1/completions: plain text continued, without a chat template."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from server.answers.completion import completion_form, completion_work
from server.answers.deadline import DeadlineDep
from server.answers.exchange import respond
from server.answers.generation import Answer, accept
from server.answers.streaming import Form
from server.deps import Infer, ServerDep
from server.routes.openapi import ANSWERS
from server.schemas.completion import CompletionRequest

router = APIRouter(prefix="/v1", tags=["inference"])


@router.post("/completions", summary="Continue a text", responses=ANSWERS)
async def create_completion(
    request: Request,
    body: CompletionRequest,
    server: ServerDep,
    caller: Infer,
    deadline: DeadlineDep,
) -> Response:
    """Several prompts are answered in one request; choices are numbered prompt by prompt."""

    async def accepting() -> tuple[Answer, Form]:
        with server.admission.ticket(caller.key_id) as ticket:
            async with deadline.enforced():
                work = await completion_work(server, request, body, ticket)
            form = completion_form(server, body, work)
            return await accept(server, work, deadline), form

    return await respond(server, request, caller, accepting)
