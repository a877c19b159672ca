"""Chat messages in OpenAI's form, checked and brought to one shape. Knows no template.

Every key that a template might drop unseen is either known here or refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from artifacts.errors import InvalidChat

Message = dict[str, Any]

ROLES = ("system", "developer", "user", "assistant", "tool")
KEYS = {"role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content"}
OWNERS = {"tool_calls": "assistant", "reasoning_content": "assistant", "tool_call_id": "tool"}
REASONING_ALIASES = ("reasoning", "thinking")
TEXT_PARTS = ("text", "input_text", "output_text")
PART_SEPARATOR = "\n"  # as vLLM joins text parts; without it two sentences would run together


def normalize_messages(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Plain dictionaries with string content, parsed tool arguments and no empty keys.

    ``developer`` becomes ``system``. Raises InvalidChat, whose ``param`` names the place.
    """
    if not isinstance(messages, list | tuple):
        raise InvalidChat("messages is not a list of messages", param="messages")
    if not messages:
        raise InvalidChat("messages is empty; send at least one message", param="messages")
    return [_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def normalize_tools(tools: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]] | None:
    """OpenAI's tool list, None if empty. Raises InvalidChat."""
    if not tools:
        return None
    for index, tool in enumerate(tools):
        place = f"tools[{index}]"
        if not isinstance(tool, Mapping) or not isinstance(tool.get("function"), Mapping):
            raise InvalidChat(
                f"{place} is not {{'type': 'function', 'function': {{…}}}}", param=place
            )
        if not isinstance(tool["function"].get("name"), str):
            raise InvalidChat(f"{place}: the function has no name", param=place)
    result = json.loads(_dump(list(tools), "tools"))
    for text in strings_of(result):
        check_text(text, "tools")
    return list(result)


def strings_of(value: Any) -> Iterator[str]:
    """Every string inside nested lists and dictionaries, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            yield from strings_of(item)
    elif isinstance(value, Sequence):
        for item in value:
            yield from strings_of(item)


def map_strings(value: Any, change: Callable[[str], str]) -> Any:
    """The same nesting with every string changed, keys included."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(key): map_strings(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [map_strings(item, change) for item in value]
    return value


def check_text(text: object, place: str) -> str:
    """The text itself. Raises InvalidChat for what is none, a lone surrogate among it."""
    if not isinstance(text, str):
        raise InvalidChat(f"{place} is {type(text).__name__}; send a string", param=place)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidChat(
            f"{place} holds a lone surrogate at character {error.start}, which is no text; "
            "send valid Unicode",
            param=place,
        ) from error
    return text


def _message(message: Mapping[str, Any], place: str) -> Message:
    if not isinstance(message, Mapping):
        raise InvalidChat(f"{place} is not an object with role and content", param=place)
    fields = {key: value for key, value in message.items() if value is not None}
    for alias in REASONING_ALIASES:
        if alias in fields:
            fields.setdefault("reasoning_content", fields.pop(alias))
    role = fields.get("role")
    if role not in ROLES:
        raise InvalidChat(
            f"{place}: role {role!r} is unknown; use one of {', '.join(ROLES)}",
            param=f"{place}.role",
        )
    fields = {key: value for key, value in fields.items() if key == "content" or value != []}
    _check_keys(fields, role, place)
    result: Message = {"role": "system" if role == "developer" else role}
    result["content"] = _content(fields, place)
    for key in ("name", "tool_call_id", "reasoning_content"):
        if fields.get(key):
            result[key] = check_text(fields[key], f"{place}.{key}")
    if "tool_calls" in fields:
        result["tool_calls"] = _tool_calls(fields["tool_calls"], f"{place}.tool_calls")
    return result


def _check_keys(fields: Mapping[str, Any], role: str, place: str) -> None:
    for key in fields:
        if key not in KEYS:
            raise InvalidChat(
                f"{place}: field {key!r} is not supported; leave it out", param=f"{place}.{key}"
            )
        if role != OWNERS.get(key, role):
            raise InvalidChat(
                f"{place}: {key} belongs to role {OWNERS[key]!r}, not {role!r}",
                param=f"{place}.{key}",
            )


def _content(fields: Mapping[str, Any], place: str) -> str:
    content = fields.get("content")
    place = f"{place}.content"
    if content is None:
        if fields.get("tool_calls") or fields.get("reasoning_content"):
            return ""
        raise InvalidChat(f"{place} is missing; send a string", param=place)
    if isinstance(content, str):
        return check_text(content, place)
    if not isinstance(content, Sequence):
        raise InvalidChat(
            f"{place} is {type(content).__name__}; send a string or a list of text parts",
            param=place,
        )
    return PART_SEPARATOR.join(_part(part, f"{place}[{i}]") for i, part in enumerate(content))


def _part(part: object, place: str) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    if not isinstance(part, Mapping) or kind not in TEXT_PARTS:
        raise InvalidChat(
            f"{place}: parts of type {kind!r} are not supported; this base reads text only",
            param=place,
        )
    return check_text(part.get("text"), place)


def _tool_calls(calls: object, place: str) -> list[dict[str, Any]]:
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        raise InvalidChat(f"{place} is not a list", param=place)
    return [_tool_call(call, f"{place}[{index}]") for index, call in enumerate(calls)]


def _tool_call(call: object, place: str) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping):
        raise InvalidChat(f"{place} is not a function call", param=place)
    if call.get("type", "function") != "function":
        raise InvalidChat(f"{place}: type {call['type']!r} is not supported", param=place)
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError) as error:
            raise InvalidChat(f"{place}: arguments is not JSON ({error})", param=place) from error
    if not isinstance(arguments, Mapping):
        raise InvalidChat(f"{place}: arguments is not a JSON object", param=place)
    arguments = json.loads(_dump(arguments, place))
    for text in strings_of(arguments):
        check_text(text, place)
    name = check_text(function.get("name"), f"{place}.name")
    result = {"type": "function", "function": {"name": name, "arguments": arguments}}
    if call.get("id") is not None:
        result["id"] = check_text(call["id"], f"{place}.id")
    return result


def _dump(value: object, place: str) -> str:
    try:
        return json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidChat(f"{place} is not plain JSON ({error})", param=place) from error
