"""``{"messages": [{"role", "content", "weight"?, …}, …], "tools"?}``, OpenAI's fine-tuning rows.

And its preference rows: ``{"input": {"messages", "tools"?}, "preferred_output": [message],
"non_preferred_output": [message]}``.
"""

from __future__ import annotations

from typing import Any

from training.data.forms.values import RowError, kind_of, list_at, names_of
from training.data.records import Message

_MESSAGE_KEYS = {
    *("role", "content", "name", "tool_calls", "tool_call_id", "weight", "reasoning_content")
}

NOTHING_LEARNED = "every assistant message has weight 0; there is nothing to learn"


def read_messages(row: dict[str, Any], column: str) -> list[Message]:
    """The messages with their weights; a key that is null is taken as absent (Parquet fills in)."""
    if "functions" in row and row["functions"] is not None:
        raise RowError("'functions' is the retired form; write 'tools'")
    if column not in row:
        raise RowError(f"{column!r} is missing; the row has {names_of(row)}")
    given = list_at(row, column)
    if not given:
        raise RowError(f"{column!r} is empty")
    messages = [_message(each, f"message {n}") for n, each in enumerate(given, start=1)]
    weights = [m.get("weight", 1) for m in messages if m["role"] == "assistant"]
    if weights and not any(weights):
        raise RowError(NOTHING_LEARNED)
    return messages


def read_replies(given: Any, what: str) -> list[Message]:
    """One assistant message or a list of them."""
    listed = given if isinstance(given, list) else [given]
    if not listed:
        raise RowError(f"{what} is empty")
    replies = [_message(each, what) for each in listed]
    for reply in replies:
        if reply["role"] != "assistant":
            raise RowError(f"{what} is from {reply['role']!r}, not the assistant")
        if "weight" in reply:
            raise RowError(f"{what} has a weight, which only supervised rows know")
    return replies


def _message(given: Any, what: str) -> Message:
    if not isinstance(given, dict) or not isinstance(given.get("role"), str):
        raise RowError(f"{what} must be an object with a 'role'")
    kept = {key: value for key, value in given.items() if value is not None}
    unknown = sorted(map(str, kept.keys() - _MESSAGE_KEYS))
    if unknown:
        raise RowError(f"{what} has an unsupported key {unknown[0]!r}")
    _check_weight(kept, what)
    if "content" not in kept and not kept.get("tool_calls"):
        raise RowError(f"{what} has neither 'content' nor 'tool_calls'")
    return {**kept, "content": kept.get("content", "")}


def _check_weight(given: Message, what: str) -> None:
    if "weight" not in given:
        return
    weight = given["weight"]
    if isinstance(weight, bool) or weight not in (0, 1):
        shown = repr(weight) if isinstance(weight, int | float) else kind_of(weight)
        raise RowError(f"{what} has weight {shown}; it is 0 (only read) or 1 (learned)")
    if given["role"] != "assistant":
        raise RowError(f"{what} has a weight, but only assistant messages are learned")
