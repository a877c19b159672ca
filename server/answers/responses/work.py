"""A response's request as a chat's. What the chat complains of is said in this API's words."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from fastapi import Request
from pydantic import TypeAdapter, ValidationError

from artifacts.errors import LoraloopError, NotFound
from server.answers.admission import Ticket
from server.answers.chat import chat_work
from server.answers.generation import Work
from server.answers.responses.items import Turns, input_items
from server.answers.responses.store import ChainTooLong, ResponseStore, StoredResponse
from server.engine.errors import EngineError
from server.errors import ApiError, to_api_error
from server.request_errors import explain
from server.schemas.chat import ChatRequest
from server.schemas.response_items import (
    AllowedFunctions,
    ChosenFunction,
    FlatJsonSchema,
    FunctionTool,
    InputItem,
    ResponseToolChoice,
    TextFormat,
)
from server.schemas.responses import InputTokensRequest, ResponsesRequest
from server.schemas.sampling import SamplingFields
from server.state import Server

Fields = dict[str, Any]
PREVIOUS = "previous_response_id"
_CHAIN: TypeAdapter[list[InputItem]] = TypeAdapter(list[InputItem])
_OWN = {"n", "stream", "stream_options", "metadata"}  # which mean nothing to a prompt or a token
_SAME = {*SamplingFields.model_fields} - _OWN | {
    "thinking_token_budget",
    "chat_template_kwargs",
}
# What a chat's body calls a field → what this one does.
_NAMES = (
    (re.compile(r"^messages\b.*"), "input"),
    (re.compile(r"^max_(completion_)?tokens$"), "max_output_tokens"),
    (re.compile(r"^reasoning_effort$"), "reasoning.effort"),
    (re.compile(r"^response_format(\.json_schema)?"), "text.format"),
    (re.compile(r"^(tools\[\d+\])\.function\b"), r"\1"),
    (re.compile(r"^tool_choice\.(function|allowed_tools)\b"), "tool_choice"),
)


async def response_work(
    server: Server, request: Request, body: ResponsesRequest, ticket: Ticket, owner: str
) -> Work:
    """The work that a response's request asks for. Raises as ``chat_work`` does.

    ``owner`` is whose stored responses there are.
    """
    turns = await _turns(server.responses, body, owner)
    fields = body.model_dump(include=_SAME, exclude_none=True, by_alias=True)
    fields |= {
        "max_tokens": body.max_output_tokens,
        "logprobs": body.has_logprobs,
        "top_logprobs": body.top_logprobs if body.has_logprobs else None,
        "response_format": None if body.text is None else _format(body.text.format),
        **_shared(body),
    }
    return replace(await _chat(server, request, fields, turns, ticket), id_prefix="resp_")


async def num_input_tokens(
    server: Server, request: Request, body: InputTokensRequest, ticket: Ticket, owner: str
) -> int:
    """How many tokens that prompt has. Raises as ``chat_work`` does, also for one too long."""
    turns = await _turns(server.responses, body, owner)
    if not turns.messages:
        message = "There is nothing to count: give input, instructions or previous_response_id."
        raise ApiError(400, message, param="input", code="missing_required_parameter")
    model = server.base.id if body.model is None else body.model
    fields = {"model": model, "max_tokens": 1, **_shared(body)}
    work = await _chat(server, request, fields, turns, ticket)
    return len(work.prompts[0])


def _shared(body: ResponsesRequest | InputTokensRequest) -> Fields:
    return {
        "tools": None if body.tools is None else [_tool(tool) for tool in body.tools],
        "tool_choice": _choice(body.tool_choice),
        "parallel_tool_calls": body.parallel_tool_calls,
        "reasoning_effort": None if body.reasoning is None else body.reasoning.effort,
    }


async def _chat(
    server: Server, request: Request, fields: Fields, turns: Turns, ticket: Ticket
) -> Work:
    with _in_other_words(turns.origins):
        chat = _validated({**fields, "messages": turns.messages})
        return await chat_work(server, request, chat, ticket)


def _validated(fields: Fields) -> ChatRequest:
    try:
        return ChatRequest.model_validate(fields)
    except ValidationError as error:
        errors = [{**one, "loc": ("body", *one["loc"])} for one in error.errors()]
        problem = explain(errors, "application/json", fields)
        raise ApiError(400, problem.message, param=problem.param, code=problem.code) from None


async def _turns(
    store: ResponseStore, body: ResponsesRequest | InputTokensRequest, owner: str
) -> Turns:
    turns = Turns()
    if body.instructions is not None:
        turns.add_text("system", body.instructions, "instructions")
    if body.previous_response_id is not None:
        reading = partial(_before, store, body.previous_response_id, owner)
        for item in await asyncio.get_running_loop().run_in_executor(store.readers, reading):
            turns.add(item, PREVIOUS)
    given = [] if body.input is None else input_items(body.input)
    for index, item in enumerate(given):
        turns.add(item, "input" if isinstance(body.input, str) else f"input[{index}]")
    turns.finish()
    return turns


def _before(store: ResponseStore, response_id: str, owner: str) -> list[InputItem]:
    """All that was said up to the end of that response."""
    try:
        chain = store.chain(response_id, owner)
    except NotFound as error:
        message = f"Previous response: {error}"
        code = "previous_response_not_found"
        raise ApiError(400, message, param=PREVIOUS, code=code) from None
    except ChainTooLong as error:
        message = f"The conversation is longer than any context: {error}."
        code = "context_length_exceeded"
        raise ApiError(400, message, param=PREVIOUS, code=code) from None
    _check_ended(chain[-1])
    return _CHAIN.validate_python([item for stored in chain for item in stored.items])


def _check_ended(stored: StoredResponse) -> None:
    if json.loads(stored.response)["status"] == "failed":
        message = f"Response {stored.id} failed: go on from the one before it."
        raise ApiError(400, message, param=PREVIOUS, code="previous_response_failed")


def _tool(tool: FunctionTool) -> Fields:
    names = {"name", "description", "parameters", "strict"}
    return {"type": "function", "function": tool.model_dump(include=names, exclude_none=True)}


def _choice(choice: ResponseToolChoice | None) -> Any:
    match choice:
        case ChosenFunction():
            return _named(choice)
        case AllowedFunctions():
            allowed = {"mode": choice.mode, "tools": [_named(one) for one in choice.tools]}
            return {"type": "allowed_tools", "allowed_tools": allowed}
    return choice


def _named(choice: ChosenFunction) -> Fields:
    return {"type": "function", "function": {"name": choice.name}}


def _format(wanted: TextFormat | None) -> Fields | None:
    if wanted is None:
        return None
    if not isinstance(wanted, FlatJsonSchema):
        return {"type": wanted.type}
    schema = wanted.model_dump(exclude={"type"}, exclude_none=True, by_alias=True)
    return {"type": "json_schema", "json_schema": schema}


@contextmanager
def _in_other_words(origins: Sequence[str]) -> Iterator[None]:
    """Name the fields of the Responses API. ``origins`` says where each message came from."""
    try:
        yield
    except (ApiError, LoraloopError, EngineError) as error:
        problem = to_api_error(error)
        if problem is None or problem.param is None:
            raise
        param = _origin(problem.param, origins)
        message = re.sub(r"\bmax_tokens\b", "max_output_tokens", problem.message)
        if problem.param != "messages":
            message = message.replace(problem.param, param)
        raise ApiError(
            problem.status,
            message,
            code=problem.code,
            param=param,
            type=problem.type,
            headers=problem.headers,
        ) from error


def _origin(param: str, origins: Sequence[str]) -> str:
    if (match := re.match(r"messages\[(\d+)\]", param)) and int(match[1]) < len(origins):
        return origins[int(match[1])]
    for name, other in _NAMES:
        param = name.sub(other, param)
    return param
