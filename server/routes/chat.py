"""POST /v1/chat/completions."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from server.answers.chat import chat_work
from server.answers.deadline import DeadlineDep
from server.answers.exchange import respond
from server.answers.generation import Answer, accept
from server.answers.streaming import Form
from server.answers.wire import ChatWire
from server.deps import Infer, ServerDep
from server.routes.openapi import ANSWERS
from server.schemas.chat import ChatRequest

router = APIRouter(prefix="/v1", tags=["inference"])


@router.post("/chat/completions", summary="Answer a chat", responses=ANSWERS)
async def create_chat_completion(
    request: Request, body: ChatRequest, server: ServerDep, caller: Infer, deadline: DeadlineDep
) -> Response:
    """Answers as one JSON body, or with ``stream: true`` as server-sent events."""

    async def accepting() -> tuple[Answer, Form]:
        with server.admission.ticket(caller.key_id) as ticket:
            async with deadline.enforced():
                work = await chat_work(server, request, body, ticket)
            end_tokens = server.base.eos_token_ids | work.sampling.stop_token_ids
            wire = ChatWire(server.token_text if body.logprobs else None)
            form = Form(
                wire, end_tokens, bool(body.stream), body.has_usage_chunk, parser=work.parser
            )
            return await accept(server, work, deadline), form

    return await respond(server, request, caller, accepting)
