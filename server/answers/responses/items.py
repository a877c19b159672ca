"""Items as the messages of a chat, and as they are stored. Knows no base and no HTTP.

What a model says in one go is several items (reasoning, a message, calls) and one message.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from server.errors import ApiError
from server.schemas.response_items import (
    CallItem,
    CallOutputItem,
    InputItem,
    MessageItem,
    ReasoningItem,
    text_of,
)
from server.schemas.responses import Input

Item = dict[str, Any]  # as the API shows it
_PREFIXES = {
    "message": "msg",
    "function_call": "fc",
    "function_call_output": "fco",
    "reasoning": "rs",
}


def new_id(item_type: str) -> str:
    return f"{_PREFIXES[item_type]}_{uuid.uuid4().hex}"


def input_items(given: Input) -> list[InputItem]:
    """``input`` in one shape."""
    if isinstance(given, str):
        return [MessageItem(type="message", role="user", content=given)]
    return given


def shown(items: Iterable[InputItem]) -> list[Item]:
    """Items as they are stored and listed: whole, each with an id of its own."""
    taken: set[str] = set()
    result = []
    for item in items:
        json = item.model_dump(by_alias=True, exclude_none=True)
        if json.get("id") is None or json["id"] in taken:
            json["id"] = new_id(json["type"])
        taken.add(json["id"])
        json.setdefault("status", "completed")
        if json["type"] == "message" and isinstance(json["content"], str):
            json["content"] = [_part(json["role"], json["content"])]
        if json["type"] == "reasoning":
            json.setdefault("summary", [])
        result.append(json)
    return result


def _part(role: str, text: str) -> Item:
    if role == "assistant":
        return {"type": "output_text", "text": text, "annotations": []}
    return {"type": "input_text", "text": text}


@dataclass(slots=True)
class Turns:
    """The messages of a chat, and of each the part of the request that it was made from."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    origins: list[str] = field(default_factory=list)  # a param each
    _calls: dict[str, str] = field(default_factory=dict)  # call_id → param, while unanswered

    def add_text(self, role: str, text: str, param: str) -> None:
        self._append({"role": role, "content": text}, param)

    def add(self, item: InputItem, param: str) -> None:
        """One more item. Raises ApiError for the output of a call that nobody made."""
        match item:
            case ReasoningItem():
                if item.text:
                    self._begin_answer(param, "content", "tool_calls", "reasoning_content")
                    self.messages[-1]["reasoning_content"] = item.text
            case MessageItem(role="assistant"):
                self._begin_answer(param, "content", "tool_calls")
                self.messages[-1]["content"] = text_of(item.content)
            case MessageItem():
                self.add_text(item.role, text_of(item.content), param)
            case CallItem():
                if item.status != "incomplete":  # which nobody can answer
                    self._add_call(item, param)
            case CallOutputItem():
                self._add_output(item, param)

    def finish(self) -> None:
        """Nothing follows. Raises ApiError for a call without an output."""
        for call_id, param in self._calls.items():
            problem = f"No tool output found for function call {call_id}."
            raise ApiError(400, problem, param=param, code="invalid_value")
        for message in self.messages:
            if message["role"] == "assistant" and "tool_calls" not in message:
                message.setdefault("content", "")

    def _append(self, message: dict[str, Any], param: str) -> None:
        self.messages.append(message)
        self.origins.append(param)

    def _begin_answer(self, param: str, *taken: str) -> None:
        """A new message of the assistant, unless the last one is its and has none of ``taken``."""
        last = self.messages[-1] if self.messages else {"role": None}
        if last["role"] != "assistant" or any(key in last for key in taken):
            self._append({"role": "assistant"}, param)

    def _add_call(self, item: CallItem, param: str) -> None:
        self._begin_answer(param)
        function = {"name": item.name, "arguments": item.arguments}
        call = {"id": item.call_id, "type": "function", "function": function}
        self.messages[-1].setdefault("tool_calls", []).append(call)
        self._calls[item.call_id] = param

    def _add_output(self, item: CallOutputItem, param: str) -> None:
        if self._calls.pop(item.call_id, None) is None:
            problem = f"No tool call found for function call output with call_id {item.call_id}."
            raise ApiError(400, problem, param=param, code="invalid_value")
        output = {"role": "tool", "tool_call_id": item.call_id, "content": text_of(item.output)}
        self._append(output, param)
