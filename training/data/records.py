"""What one row of a data set becomes, whatever its form. Knows no file format and no template.

A record knows where it came from (``source`` counts the configuration's sources from 0), and keeps
the plain values of its row: what rows are grouped, stratified or sampled by.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]
Tools = list[dict[str, Any]] | None
Fields = dict[str, str | int | float | bool | None]


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages in OpenAI form that end with the assistant.

    An assistant message with ``weight`` 0 is read and not learned. ``is_desirable`` is the label of
    a KTO row, None where the row has none.
    """

    messages: list[Message]
    tools: Tools
    file: str
    line: int
    fields: Fields = field(default_factory=dict)
    is_desirable: bool | None = None
    source: int = 0


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """A prompt that ends with the user or a tool, and the better and the worse reply to it."""

    messages: list[Message]
    tools: Tools
    chosen: list[Message]
    rejected: list[Message]
    file: str
    line: int
    fields: Fields = field(default_factory=dict)
    source: int = 0


@dataclass(frozen=True, slots=True)
class PlainText:
    """Text that is learned as it stands, every token of it."""

    text: str
    file: str
    line: int
    fields: Fields = field(default_factory=dict)
    source: int = 0


Record = Conversation | PreferencePair | PlainText
