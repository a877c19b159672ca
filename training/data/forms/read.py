"""Rows of one source to records. The form is that of the first row that has one.

A row in another form is bad: two forms in one file are more often a mistake than a wish.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from artifacts.errors import InvalidData
from training.data.forms import alpaca, openai, sharegpt
from training.data.forms.layout import DEFAULT_COLUMNS, GOAL_COLUMNS, Carrier, Goal, Layout
from training.data.forms.values import (
    RowError,
    as_text,
    kind_of,
    message,
    names_of,
    scalar_fields,
    tools_at,
)
from training.data.records import Conversation, Message, PlainText, PreferencePair, Record, Tools
from training.data.rows import BadRow, Row

_MARKS: dict[str, Carrier] = {  # column → what it is a mark of
    "messages": "openai",
    "conversations": "sharegpt",
    "instruction": "alpaca",
    "preferred_output": "openai",
}
_OPENAI_PAIR = ("input", "preferred_output", "non_preferred_output")
_READ_BY: dict[Carrier, tuple[str, ...]] = {
    "alpaca": ("prompt", "query", "history", "system", "tools"),
    "sharegpt": ("messages", "system", "tools"),
    "openai": ("messages", "tools"),
    "text": ("prompt",),
}


class Form(NamedTuple):
    """What a row is written as, and what it is good for."""

    carrier: Carrier
    goal: Goal

    def __str__(self) -> str:
        return self.carrier if self.goal == "supervised" else f"{self.carrier} {self.goal}"


class RecordReader:
    """Reads one source; ``notes`` says afterwards what was in it and was not read."""

    def __init__(self, layout: Layout, source: int = 0) -> None:
        """``source`` is what the records will say of where they come from."""
        self._layout = layout
        self._source = source
        self._form: Form | None = None
        self._unseen = set(layout.columns.values())
        self.notes: list[str] = []

    def read(self, rows: Iterable[Row | BadRow]) -> Iterator[Record | BadRow]:
        """One record or bad row for each row, in order.

        Raises InvalidData at the end if a column that was named stands in no row at all.
        """
        found: set[str] = set()
        file = ""
        for row in rows:
            if isinstance(row, BadRow):
                yield row
                continue
            file = row.file
            try:
                yield self._record(row)
            except RowError as error:
                yield BadRow(row.file, row.line, str(error))
            if self._unseen and isinstance(row.value, dict):
                found.update(map(str, row.value))
                self._unseen -= found
        if self._unseen and found:
            missing = ", ".join(repr(column) for column in sorted(self._unseen))
            raise InvalidData(
                f"{file}: columns names {missing}, which stands in no row; "
                f"the rows have {', '.join(sorted(found))}"
            )

    def _record(self, row: Row) -> Record:
        if not isinstance(row.value, dict):
            raise RowError(f"a row must be an object, not {kind_of(row.value)}")
        form = self._form_of(row.value)
        if self._form is None:
            self._settle(form, row.value)
        elif form != self._form:
            raise RowError(f"a row in {form} form in a file of {self._form} form")
        return replace(_make_record(row, form, self._layout), source=self._source)

    def _form_of(self, row: dict[str, Any]) -> Form:
        layout = self._layout
        carrier = layout.carrier or self._found_carrier(row)
        return Form(carrier, layout.goal or _found_goal(row))

    def _found_carrier(self, row: dict[str, Any]) -> Carrier:
        if self._layout.columns:  # of the carriers, only these two cannot be told by columns
            return "openai" if _has_roles(row.get(self._layout.columns["messages"])) else "sharegpt"
        found = {mark: carrier for mark, carrier in _MARKS.items() if mark in row}
        if "text" in row and not found:
            return "text"
        if not found:
            marks = ", ".join([*_MARKS, "text"])
            raise RowError(f"no known form: expected {marks} among its columns ({names_of(row)})")
        if len(found) > 1:
            raise RowError(f"in more than one form at once: {' and '.join(found)}")
        return next(iter(found.values()))

    def _settle(self, form: Form, row: dict[str, Any]) -> None:
        """The first row that has a form decides, and shows what will be left unread."""
        self._form = form
        columns = self._layout.columns
        readable = {*_READ_BY[form.carrier], *GOAL_COLUMNS[form.goal]}
        if form.carrier == "alpaca" and form.goal != "preference":
            readable.add("response")
        if idle := sorted(set(columns) - readable):
            raise InvalidData(
                f"columns: {', '.join(idle)}: not read from {form} rows; leave it out or say form"
            )
        if columns:
            usual = {DEFAULT_COLUMNS[name] for name in readable - set(columns)}
            for column in sorted((usual & row.keys()) - set(columns.values())):
                self.notes.append(f"column {column!r} is not read: columns does not name it")


def _has_roles(turns: Any) -> bool:
    first = turns[0] if isinstance(turns, list) and turns else None
    if isinstance(turns, str):
        return '"role"' in turns
    return isinstance(first, dict) and "role" in first


def _found_goal(row: dict[str, Any]) -> Goal:
    if any(name in row for name in ("chosen", "rejected", "preferred_output")):
        return "preference"
    return "kto" if DEFAULT_COLUMNS["kto_tag"] in row else "supervised"


# --- records ---


def _make_record(row: Row, form: Form, layout: Layout) -> Record:
    fields = scalar_fields(row.value)
    if form.carrier == "text":
        if form.goal != "supervised":
            raise RowError("a text has no reply to prefer or to judge")
        return PlainText(_read_text(row.value, layout), row.file, row.line, fields)
    if form.goal == "preference":
        return _pair(row, form.carrier, layout)
    messages, tools = _dialogue(row.value, form.carrier, layout)
    if form.carrier == "alpaca":
        messages = [*messages, alpaca.read_reply(row.value, layout)]
    _check_end(messages)
    label = _label(row.value, layout) if form.goal == "kto" else None
    return Conversation(messages, tools, row.file, row.line, fields, label)


def _dialogue(row: dict[str, Any], carrier: Carrier, layout: Layout) -> tuple[list[Message], Tools]:
    """What the row says before the replies that its goal adds."""
    tools = tools_at(row, layout.column("tools"))
    if carrier == "alpaca":
        return alpaca.read_prompt(row, layout), tools
    if carrier == "sharegpt":
        return sharegpt.read_turns(row, layout), tools
    column = layout.columns["messages"] if layout.columns else "messages"
    return openai.read_messages(row, column), tools


def _pair(row: Row, carrier: Carrier, layout: Layout) -> PreferencePair:
    value = row.value
    if carrier == "openai" and not layout.columns and "preferred_output" in value:
        given, preferred, other = (_part(value, key) for key in _OPENAI_PAIR)
        if not isinstance(given, dict):
            raise RowError(f"'input' must be an object, not {kind_of(given)}")
        messages, tools = _dialogue(given, carrier, layout)
        names = list(_OPENAI_PAIR[1:])
    else:
        names = [layout.column(name) or name for name in ("chosen", "rejected")]
        preferred, other = (_part(value, name) for name in names)
        messages, tools = _dialogue(value, carrier, layout)
    if messages[-1]["role"] not in ("user", "tool"):
        raise RowError(f"the prompt ends with {messages[-1]['role']!r}, not with the user's turn")
    chosen = _replies(preferred, repr(names[0]), layout)
    rejected = _replies(other, repr(names[1]), layout)
    if chosen == rejected:
        raise RowError(f"{names[0]!r} and {names[1]!r} are the same")
    fields = scalar_fields(value)
    return PreferencePair(messages, tools, chosen, rejected, row.file, row.line, fields)


def _part(row: dict[str, Any], name: str) -> Any:
    if row.get(name) is None:
        raise RowError(f"{name!r} is missing; the row has {names_of(row)}")
    return row[name]


def _replies(given: Any, what: str, layout: Layout) -> list[Message]:
    """A reply as text, as a ShareGPT turn or as OpenAI's messages."""
    if isinstance(given, str):
        replies = [message("assistant", given)]
    elif isinstance(given, dict) and layout.tag("role_tag")[0] in given:
        replies = [sharegpt.read_reply(given, what, layout)]
    else:
        replies = openai.read_replies(given, what)
    if not any(reply.get("tool_calls") or _says_something(reply) for reply in replies):
        raise RowError(f"{what} is empty")
    return replies


def _says_something(reply: Message) -> bool:
    content = reply["content"]
    return bool(content.strip()) if isinstance(content, str) else bool(content)


def _check_end(messages: list[Message]) -> None:
    if messages[-1]["role"] != "assistant":
        raise RowError(f"ends with {messages[-1]['role']!r}; the last message must be assistant's")
    if all(each["role"] != "user" for each in messages):
        raise RowError("has no user message")


def _label(row: dict[str, Any], layout: Layout) -> bool:
    column = layout.column("kto_tag")
    label = row.get(column) if column else None
    if isinstance(label, str) and label.lower() in ("true", "false"):  # all that CSV can say
        return label.lower() == "true"
    if not isinstance(label, bool):
        shown = repr(label) if isinstance(label, str | int | float) else kind_of(label)
        raise RowError(f"{column!r} must be true or false, not {shown}")
    return label


def _read_text(row: dict[str, Any], layout: Layout) -> str:
    column = layout.columns.get("prompt", "text")
    if column not in row:
        raise RowError(f"{column!r} is missing; the row has {names_of(row)}")
    text = as_text(row[column], repr(column))
    if not text.strip():
        raise RowError(f"{column!r} is empty")
    return text
