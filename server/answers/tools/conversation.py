"""Calls and their results in the messages of a chat: each call is answered, at once and once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from server.errors import ApiError
from server.schemas.messages import Message


def check_calls(messages: Sequence[Message]) -> None:
    """Raises ApiError for a result without its call, and for a call without its result."""
    open_ids: list[str] = []
    called_at = 0
    for index, message in enumerate(messages):
        if message.role == "tool":
            _take_result(open_ids, message.tool_call_id, f"messages[{index}].tool_call_id")
            continue
        if open_ids:
            _refuse_open(open_ids, called_at)
        if message.role == "assistant" and message.tool_calls:
            open_ids, called_at = _call_ids(message, f"messages[{index}].tool_calls"), index
    if open_ids:
        _refuse_open(open_ids, called_at)


def _take_result(open_ids: list[str], result_of: str | None, param: str) -> None:
    if result_of is None:
        message = f"Missing required parameter: {param}: a tool's message says whose result it is."
        raise ApiError(400, message, param=param, code="missing_required_parameter")
    if result_of not in open_ids:
        message = (
            f"{param} is {result_of[:100]!r}, but no call of the assistant's message before it "
            "has that id and waits for a result."
        )
        raise ApiError(400, message, param=param, code="invalid_value")
    open_ids.remove(result_of)


def _call_ids(message: Message, place: str) -> list[str]:
    ids: list[str] = []
    for index, call in enumerate(message.tool_calls or ()):
        param, call_id = f"{place}[{index}].id", call.get("id")
        if not isinstance(call_id, str) or not call_id:
            text = f"Missing required parameter: {param}: a call has an id, which its result names."
            raise ApiError(400, text, param=param, code="missing_required_parameter")
        if call_id in ids:
            text = f"{param}: {call_id[:100]!r} is another call's id already."
            raise ApiError(400, text, param=param, code="invalid_value")
        ids.append(call_id)
    return ids


def _refuse_open(open_ids: list[str], called_at: int) -> NoReturn:
    param = f"messages[{called_at}].tool_calls"
    shown = ", ".join(open_ids)[:500]
    message = (
        f"{param}: each call must be followed by a message of role 'tool' with its result; there "
        f"is none for {shown}."
    )
    raise ApiError(400, message, param=param, code="invalid_value")
