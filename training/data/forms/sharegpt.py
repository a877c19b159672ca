"""``{"conversations": [{"from", "value"}, …], "system"?, "tools"?}``, with names of one's own.

As in LLaMA-Factory, turns alternate: human or observation, then gpt or function_call. A system turn
stands first or not at all.
"""

from __future__ import annotations

from typing import Any

from training.data.forms.layout import Layout
from training.data.forms.values import (
    RowError,
    as_text,
    kind_of,
    list_at,
    message,
    names_of,
    parse_json,
    text_at,
)
from training.data.records import Message

_ROLES = {
    "user_tag": "user",
    "observation_tag": "tool",
    "assistant_tag": "assistant",
    "function_tag": "function_call",
    "system_tag": "system",
}
_ASKING, _ANSWERING = ("user", "tool"), ("assistant", "function_call")


def read_turns(row: dict[str, Any], layout: Layout) -> list[Message]:
    """All turns in OpenAI's form; the caller judges who must be last."""
    column = layout.column("messages")
    if column not in row:
        raise RowError(f"{column!r} is missing; the row has {names_of(row)}")
    turns = list_at(row, column)
    if not turns:
        raise RowError(f"{column!r} is empty")
    system = text_at(row, layout.column("system"))
    messages = [message("system", system)] if system else []
    shift = 0
    for number, turn in enumerate(turns, start=1):
        role, text = _read_turn(turn, f"turn {number}", layout)
        if role == "system" and number == 1:
            if system:
                raise RowError(f"a system turn beside the column {layout.column('system')!r}")
            shift = 1
            messages.append(message("system", text))
            continue
        expected = _ASKING if (number - shift) % 2 else _ANSWERING
        if role not in expected:
            wanted = " or ".join(_words(layout, role) for role in expected)
            raise RowError(f"turn {number} is from {_sender(turn, layout)!r}, expected {wanted}")
        messages.append(_message(role, text, f"turn {number}"))
    return messages


def read_reply(turn: Any, what: str, layout: Layout) -> Message:
    """One turn that answers. Raises RowError for any other."""
    role, text = _read_turn(turn, what, layout)
    if role not in _ANSWERING:
        raise RowError(f"{what} is from {_sender(turn, layout)!r}, not the assistant")
    return _message(role, text, what)


def _read_turn(turn: Any, what: str, layout: Layout) -> tuple[str, str]:
    if not isinstance(turn, dict):
        raise RowError(f"{what} must be an object, not {kind_of(turn)}")
    sender = _sender(turn, layout)
    for tag, role in _ROLES.items():
        if sender in layout.tag(tag):
            (content_tag,) = layout.tag("content_tag")
            return role, as_text(turn.get(content_tag), f"{content_tag!r} of {what}")
    known = ", ".join(word for tag in _ROLES for word in layout.tag(tag))
    raise RowError(f"{what} is from {sender!r}; known: {known}")


def _sender(turn: dict[str, Any], layout: Layout) -> Any:
    (role_tag,) = layout.tag("role_tag")
    return turn.get(role_tag)


def _words(layout: Layout, role: str) -> str:
    tag = next(tag for tag, its_role in _ROLES.items() if its_role == role)
    return layout.tag(tag)[0]


def _message(role: str, text: str, what: str) -> Message:
    return _call(text, what) if role == "function_call" else message(role, text)


def _call(text: str, what: str) -> Message:
    """One call or a list of calls, written as JSON."""
    calls = parse_json(text, f"the function call of {what}")
    calls = calls if isinstance(calls, list) else [calls]
    if not calls:
        raise RowError(f"the function call of {what} is empty")
    for call in calls:
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            raise RowError(f"the function call of {what} has no 'name'")
    functions = [{"name": c["name"], "arguments": c.get("arguments", {})} for c in calls]
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": function} for function in functions],
    }
