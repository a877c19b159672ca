"""POST /v1/completions: plain text continued, without a chat template."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from server.answers.generation import accept
from server.answers.prompts import completion_work
from server.answers.schemas import CompletionRequest
from server.answers.streaming import AnswerEvents, answer_whole
from server.answers.wire import CompletionWire
from server.deps import Infer, ServerDep
from server.routes.openapi import ANSWERS

router = APIRouter(prefix="/v1", tags=["inference"])


@router.post("/completions", summary="Continue a text", responses=ANSWERS)
async def create_completion(
    request: Request, body: CompletionRequest, server: ServerDep, caller: Infer
) -> Response:
    """Several prompts are answered in one request; choices are numbered prompt by prompt."""
    work = await completion_work(server, request, body)
    answer = await accept(server, work)
    wire = CompletionWire(None if body.logprobs is None else server.token_text)
    end_tokens = server.base.eos_token_ids | work.sampling.stop_token_ids
    if body.stream:
        return AnswerEvents(answer, wire, end_tokens, body.has_usage_chunk)
    return await answer_whole(request, answer, wire, end_tokens)
