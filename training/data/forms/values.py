"""Values of a row, checked: text, lists and JSON written as text. Knows no form."""

from __future__ import annotations

import json
from typing import Any

from training.data.records import Fields, Message, Tools

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


def kind_of(value: Any) -> str:
    """The value's kind in JSON's words."""
    return _KIND_NAMES.get(type(value), "text" if isinstance(value, str) else type(value).__name__)


def as_text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise RowError(f"{what} must be text, not {kind_of(value)}")
    return value


def text_at(row: dict[str, Any], column: str | None) -> str:
    """Text that may be absent: then it is empty."""
    if column is None or row.get(column) is None:
        return ""
    return as_text(row[column], repr(column))


def list_at(row: dict[str, Any], column: str | None) -> list[Any]:
    """A list that may be absent, or written as JSON text (CSV has nothing else)."""
    value = None if column is None else row.get(column)
    if value is None or value == "":
        return []
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = parse_json(value, repr(column))
    if not isinstance(value, list):
        raise RowError(f"{column!r} must be a list, not {kind_of(value)}")
    return value


def tools_at(row: dict[str, Any], column: str | None) -> Tools:
    """The functions that may be called, in OpenAI's form; ShareGPT files hold them as JSON text."""
    tools = None if column is None else row.get(column)
    if isinstance(tools, str) and tools.strip():
        tools = parse_json(tools, repr(column))
    if not tools:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise RowError(f"{column!r} must be a list of objects")
    return [t if "function" in t else {"type": "function", "function": t} for t in tools]


def parse_json(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RowError(f"{what} is not valid JSON") from error


def message(role: str, content: str) -> Message:
    return {"role": role, "content": content}


def names_of(row: dict[str, Any]) -> str:
    """The row's columns, for a complaint."""
    return ", ".join(sorted(map(str, row))) or "none"


def scalar_fields(row: dict[str, Any]) -> Fields:
    """The plain values of a row, under the names that they have in the file."""
    return {
        str(key): value
        for key, value in row.items()
        if value is None or isinstance(value, str | int | float | bool)
    }
