"""POST /v1/chat/completions."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from server.answers.generation import accept
from server.answers.prompts import chat_work
from server.answers.schemas import ChatRequest
from server.answers.streaming import AnswerEvents, answer_whole
from server.answers.wire import ChatWire
from server.deps import Infer, ServerDep
from server.routes.openapi import ANSWERS

router = APIRouter(prefix="/v1", tags=["inference"])


@router.post("/chat/completions", summary="Answer a chat", responses=ANSWERS)
async def create_chat_completion(
    request: Request, body: ChatRequest, server: ServerDep, caller: Infer
) -> Response:
    """Answers as one JSON body, or with ``stream: true`` as server-sent events."""
    work = await chat_work(server, request, body)
    answer = await accept(server, work)
    wire = ChatWire(server.token_text if body.logprobs else None)
    end_tokens = server.base.eos_token_ids | work.sampling.stop_token_ids
    if body.stream:
        return AnswerEvents(answer, wire, end_tokens, body.has_usage_chunk)
    return await answer_whole(request, answer, wire, end_tokens)
