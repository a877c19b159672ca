"""``{"instruction", "input"?, "output", "history"?: [[q, a], …], "system"?}``"""

from __future__ import annotations

from typing import Any

from training.data.forms.layout import Layout
from training.data.forms.values import RowError, as_text, list_at, message, names_of, text_at
from training.data.records import Message


def read_prompt(row: dict[str, Any], layout: Layout) -> list[Message]:
    """System, history and the question, which is prompt and query on two lines."""
    columns = [column for name in ("prompt", "query") if (column := layout.column(name))]
    parts = [text for column in columns if (text := text_at(row, column))]
    if not parts:
        if not any(column in row for column in columns):
            raise RowError(f"{columns[0]!r} is missing; the row has {names_of(row)}")
        raise RowError(f"{' and '.join(map(repr, columns))} {_are_empty(columns)}")
    system = text_at(row, layout.column("system"))
    messages = [message("system", system)] if system else []
    for turn in list_at(row, layout.column("history")):
        if not isinstance(turn, list) or len(turn) != 2:
            raise RowError("'history' must be a list of [question, answer] pairs")
        question, answer = (as_text(text, "an entry of 'history'") for text in turn)
        messages += [message("user", question), message("assistant", answer)]
    return [*messages, message("user", "\n".join(parts))]


def read_reply(row: dict[str, Any], layout: Layout) -> Message:
    column = layout.column("response")
    if column is None:
        raise RowError("columns names no response, so there is nothing to learn")
    if column not in row:
        raise RowError(f"{column!r} is missing; the row has {names_of(row)}")
    output = as_text(row[column], repr(column))
    if not output.strip():
        raise RowError(f"{column!r} is empty")
    return message("assistant", output)


def _are_empty(columns: list[str]) -> str:
    return "are both empty" if len(columns) > 1 else "is empty"
