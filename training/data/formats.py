"""Rows in the three known forms to conversations. Knows no tokenizer and no template.

- alpaca: ``{"instruction", "input"?, "output", "history"?: [[q, a], …], "system"?}``
- sharegpt: ``{"conversations": [{"from", "value"}, …], "system"?, "tools"?}``
- openai: ``{"messages": [{"role", "content", …}, …], "tools"?}``

The form is that of a file's first recognisable row; a row of another form in the same file is bad.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from training.data.rows import BadRow, Row

Message = dict[str, Any]

SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "function_call": "function_call",
    "observation": "tool",
    "tool": "tool",
}
_OPENAI_MESSAGE_KEYS = {"role", "content", "name", "tool_calls", "tool_call_id", "weight"}
_KIND_NAMES = {
    dict: "an object",
    list: "a list",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    type(None): "null",
}


class RowError(ValueError):
    """Why one row cannot be used; becomes a BadRow."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages in OpenAI form that end with the assistant, and where they came from."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None
    file: str
    line: int


def read_conversations(rows: Iterable[Row]) -> tuple[list[Conversation], list[BadRow]]:
    """Rows of ONE file to conversations; what cannot be used comes back with its reason."""
    conversations: list[Conversation] = []
    bad: list[BadRow] = []
    form: str | None = None
    for row in rows:
        try:
            found = _form_of(row.value)
            form = found if form is None else form
            if found != form:
                raise RowError(f"a row in {found} form in a file of {form} form")
            messages, tools = _READERS[form](row.value)
            _check_turns(messages)
        except RowError as error:
            bad.append(BadRow(row.file, row.line, str(error)))
        else:
            conversations.append(Conversation(messages, tools, row.file, row.line))
    return conversations, bad


def _form_of(value: Any) -> str:
    if not isinstance(value, dict):
        raise RowError(f"a row must be an object, not {_kind(value)}")
    if "chosen" in value or "rejected" in value:
        raise RowError("a preference pair (chosen, rejected); only supervised rows can be trained")
    forms = [form for key, form in _MARKS.items() if key in value]
    if not forms:
        listed = ", ".join(sorted(map(str, value))) or "none"
        raise RowError(f"no known form: expected {', '.join(_MARKS)} among its keys ({listed})")
    if len(forms) > 1:
        raise RowError(f"in more than one form at once: {' and '.join(forms)}")
    return forms[0]


def _check_turns(messages: list[Message]) -> None:
    if messages[-1]["role"] != "assistant":
        raise RowError(f"ends with {messages[-1]['role']!r}; the last message must be assistant's")
    if all(message["role"] != "user" for message in messages):
        raise RowError("has no user message")


def _read_alpaca(row: dict[str, Any]) -> tuple[list[Message], None]:
    prompt = [text for key in ("instruction", "input") if (text := _text(row, key, optional=True))]
    if not prompt:
        raise RowError("'instruction' and 'input' are both empty")
    output = _text(row, "output")
    if not output.strip():
        raise RowError("'output' is empty")
    messages = _system(row)
    for turn in _list(row, "history"):
        if not isinstance(turn, list) or len(turn) != 2:
            raise RowError("'history' must be a list of [question, answer] pairs")
        question, answer = (_as_text(text, "an entry of 'history'") for text in turn)
        messages += [_message("user", question), _message("assistant", answer)]
    return [*messages, _message("user", "\n".join(prompt)), _message("assistant", output)], None


def _read_sharegpt(row: dict[str, Any]) -> tuple[list[Message], list[dict[str, Any]] | None]:
    turns = _list(row, "conversations")
    if not turns:
        raise RowError("'conversations' is empty")
    messages = _system(row)
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, dict):
            raise RowError(f"turn {number} must be an object, not {_kind(turn)}")
        sender = turn.get("from")
        role = SHAREGPT_ROLES.get(sender) if isinstance(sender, str) else None
        if role is None:
            known = ", ".join(SHAREGPT_ROLES)
            raise RowError(f"turn {number} is from {sender!r}; known: {known}")
        text = _as_text(turn.get("value"), f"'value' of turn {number}")
        messages.append(_call(text, number) if role == "function_call" else _message(role, text))
    return messages, _tools(row)


def _call(text: str, number: int) -> Message:
    """A ShareGPT ``function_call`` turn: one call or a list of calls, written as JSON."""
    calls = _json(text, f"the function call of turn {number}")
    calls = calls if isinstance(calls, list) else [calls]
    if not calls:
        raise RowError(f"the function call of turn {number} is empty")
    for call in calls:
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            raise RowError(f"the function call of turn {number} has no 'name'")
    functions = [{"name": c["name"], "arguments": c.get("arguments", {})} for c in calls]
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": function} for function in functions],
    }


def _read_openai(row: dict[str, Any]) -> tuple[list[Message], list[dict[str, Any]] | None]:
    messages = _list(row, "messages")
    if not messages:
        raise RowError("'messages' is empty")
    if "functions" in row:
        raise RowError("'functions' is the retired form; write 'tools'")
    return [_openai_message(each, n) for n, each in enumerate(messages, start=1)], _tools(row)


def _openai_message(message: Any, number: int) -> Message:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise RowError(f"message {number} must be an object with a 'role'")
    unknown = sorted(map(str, message.keys() - _OPENAI_MESSAGE_KEYS))
    if unknown:
        raise RowError(f"message {number} has an unsupported key {unknown[0]!r}")
    if message.get("weight", 1) != 1:
        raise RowError(f"message {number} has weight {message['weight']!r}; only 1 is supported")
    if message.get("content") is None and not message.get("tool_calls"):
        raise RowError(f"message {number} has neither 'content' nor 'tool_calls'")
    kept = {key: value for key, value in message.items() if key != "weight"}
    kept["content"] = "" if kept.get("content") is None else kept["content"]
    return kept


def _system(row: dict[str, Any]) -> list[Message]:
    system = _text(row, "system", optional=True)
    return [_message("system", system)] if system else []


def _tools(row: dict[str, Any]) -> list[dict[str, Any]] | None:
    tools = row.get("tools")
    if isinstance(tools, str) and tools.strip():  # ShareGPT files keep the list as JSON text
        tools = _json(tools, "'tools'")
    if not tools:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise RowError("'tools' must be a list of objects")
    return [t if "function" in t else {"type": "function", "function": t} for t in tools]


def _message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def _text(row: dict[str, Any], key: str, *, optional: bool = False) -> str:
    if optional and row.get(key) is None:
        return ""
    if key not in row:
        raise RowError(f"{key!r} is missing")
    return _as_text(row[key], repr(key))


def _as_text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise RowError(f"{what} must be text, not {_kind(value)}")
    return value


def _list(row: dict[str, Any], key: str) -> list[Any]:
    value = row.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise RowError(f"{key!r} must be a list, not {_kind(value)}")
    return value


def _json(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise RowError(f"{what} is not valid JSON") from error


def _kind(value: Any) -> str:
    return _KIND_NAMES.get(type(value), "text")


_MARKS = {"messages": "openai", "conversations": "sharegpt", "instruction": "alpaca"}
_READERS: dict[
    str, Callable[[dict[str, Any]], tuple[list[Message], list[dict[str, Any]] | None]]
] = {"alpaca": _read_alpaca, "sharegpt": _read_sharegpt, "openai": _read_openai}
