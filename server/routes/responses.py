"""/v1/responses: OpenAI's Responses API."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from server.answers.deadline import DeadlineDep
from server.answers.exchange import respond
from server.answers.generation import Answer, accept
from server.answers.responses.form import ResponseForm
from server.answers.responses.listing import page_of_input
from server.answers.responses.work import num_input_tokens, response_work
from server.auth import Caller
from server.deps import Infer, ServerDep
from server.errors import ApiError
from server.paging import Order, Paging, list_json
from server.routes.openapi import ANSWERS, ERRORS, error
from server.schemas.responses import InputTokensRequest, ResponsesRequest

router = APIRouter(prefix="/v1/responses", tags=["inference"])

NO_KEY = "none"  # callers without a key share what they store
_NO_RESPONSE: dict[int | str, dict[str, Any]] = {404: error("This key has no such response.")}


@router.post("", summary="Answer, statefully", responses=ANSWERS)
async def create_response(
    request: Request,
    body: ResponsesRequest,
    server: ServerDep,
    caller: Infer,
    deadline: DeadlineDep,
) -> Response:
    """Answers as one JSON body, or with ``stream: true`` as server-sent events. Stored unless
    ``store`` is false."""

    async def accepting() -> tuple[Answer, ResponseForm]:
        with server.admission.ticket(caller.key_id) as ticket:
            async with deadline.enforced():
                work = await response_work(server, request, body, ticket, _owner(caller))
            form = ResponseForm(
                body,
                server.base.eos_token_ids | work.sampling.stop_token_ids,
                work.parser,
                server.token_text if body.has_logprobs else None,
                server.responses,
                _owner(caller),
            )
            return await accept(server, work, deadline), form

    return await respond(server, request, caller, accepting)


@router.post("/input_tokens", summary="Count a prompt's tokens", responses=ERRORS)
async def count_input_tokens(
    request: Request,
    body: InputTokensRequest,
    server: ServerDep,
    caller: Infer,
    deadline: DeadlineDep,
) -> dict[str, Any]:
    with server.admission.ticket(caller.key_id) as ticket:
        async with deadline.enforced():
            number = await num_input_tokens(server, request, body, ticket, _owner(caller))
        ticket.leave()
    return {"object": "response.input_tokens", "input_tokens": number}


@router.get("/{response_id}", summary="Read a stored response", responses=_NO_RESPONSE)
def retrieve_response(
    response_id: str,
    server: ServerDep,
    caller: Infer,
    stream: Annotated[bool, Query(description="refused: only what is under way streams")] = False,
) -> Response:
    stored = server.responses.get(response_id, _owner(caller))
    if stream:
        message = "Only a response that was made with background: true can be streamed again."
        raise ApiError(400, message, param="stream", code="unsupported_parameter")
    return Response(stored.response, media_type="application/json")


@router.delete("/{response_id}", summary="Delete a stored response", responses=_NO_RESPONSE)
def delete_response(response_id: str, server: ServerDep, caller: Infer) -> dict[str, Any]:
    """For good. A response that goes on from it cannot be gone on from any more."""
    server.responses.delete(response_id, _owner(caller))
    return {"id": response_id, "object": "response", "deleted": True}


@router.get(
    "/{response_id}/input_items",
    summary="List what a response was made from",
    responses={400: ERRORS[400], **_NO_RESPONSE},
)
def list_input_items(
    response_id: str,
    server: ServerDep,
    caller: Infer,
    after: Annotated[str | None, Query(max_length=128)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Order = "desc",
) -> dict[str, Any]:
    """Newest first, unless ``order=asc``; with what the response went on from."""
    chain = server.responses.chain(response_id, _owner(caller))
    return list_json(page_of_input(chain, Paging(after, limit, order)))


@router.post(
    "/{response_id}/cancel",
    summary="Refused: only background responses can be cancelled",
    responses={400: ERRORS[400], **_NO_RESPONSE},
)
def cancel_response(response_id: str, server: ServerDep, caller: Infer) -> Response:
    """To cancel one that is under way, close its connection."""
    server.responses.get(response_id, _owner(caller))
    message = "Cannot cancel a synchronous response."
    raise ApiError(400, message, param="response_id", code="invalid_value")


def _owner(caller: Caller) -> str:
    return NO_KEY if caller.key_id is None else caller.key_id
