"""How the rows of one source are to be read, as far as somebody said so.

Columns and tags carry LLaMA-Factory's names (its ``dataset_info.json``). Where columns are named,
only these are read, as there; what that leaves out is said in a note.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from artifacts.errors import InvalidInput

Carrier = Literal["alpaca", "sharegpt", "openai", "text"]
Goal = Literal["supervised", "preference", "kto"]

DEFAULT_COLUMNS = {
    "prompt": "instruction",
    "query": "input",
    "response": "output",
    "history": "history",
    "messages": "conversations",
    "system": "system",
    "tools": "tools",
    "chosen": "chosen",
    "rejected": "rejected",
    "kto_tag": "kto_tag",
}
_MEDIA = ("images", "videos", "audios")
DEFAULT_TAGS = {
    "role_tag": ("from",),
    "content_tag": ("value",),
    "user_tag": ("human", "user"),
    "assistant_tag": ("gpt", "assistant"),
    "observation_tag": ("observation", "tool"),
    "function_tag": ("function_call",),
    "system_tag": ("system",),
}
OPENAI_TAGS = {  # what LLaMA-Factory's files write beside formatting: openai
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "function_tag": "function_call",
    "system_tag": "system",
}
GOAL_COLUMNS: dict[Goal, tuple[str, ...]] = {
    "supervised": (),
    "preference": ("chosen", "rejected"),
    "kto": ("kto_tag",),
}
_FORMS: dict[str, tuple[Carrier | None, Goal | None]] = {
    "auto": (None, None),
    "alpaca": ("alpaca", "supervised"),
    "sharegpt": ("sharegpt", "supervised"),
    "openai": ("openai", "supervised"),
    "preference": (None, "preference"),
    "kto": (None, "kto"),
    "text": ("text", "supervised"),
}


@dataclass(frozen=True, slots=True)
class Layout:
    """None is settled by the first row; empty columns and tags are the usual ones."""

    carrier: Carrier | None = None
    goal: Goal | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)

    def column(self, name: str) -> str | None:
        """The file's name for LLaMA-Factory's ``name``; None for one that is not to be read."""
        return self.columns.get(name) if self.columns else DEFAULT_COLUMNS[name]

    def tag(self, name: str) -> tuple[str, ...]:
        """The words that stand for ``name`` in the file."""
        return (self.tags[name],) if name in self.tags else DEFAULT_TAGS[name]


def make_layout(form: str, columns: Mapping[str, str], tags: Mapping[str, str]) -> Layout:
    """Raises InvalidInput for unknown columns and tags, and for columns that leave a gap."""
    media = [name for name in columns if name in _MEDIA]
    if media:
        raise InvalidInput(
            f"columns: {media[0]!r}: bases here read text only; leave it out", param="data"
        )
    _check_names("columns", columns, DEFAULT_COLUMNS)
    _check_names("tags", tags, DEFAULT_TAGS)
    carrier, goal = _FORMS[form]
    if goal is None and columns:
        goal = _goal_of(columns)
    if carrier is None and (columns or tags):
        carrier = _carrier_of(columns, tags, goal)
    return complete_layout(Layout(carrier, goal, columns, tags))


def complete_layout(layout: Layout) -> Layout:
    """The same layout. Raises InvalidInput if its columns or tags do not fit its form."""
    carrier, columns = layout.carrier, layout.columns
    own_tags = {name: word for name, word in layout.tags.items() if OPENAI_TAGS.get(name) != word}
    if own_tags and carrier != "sharegpt":
        raise InvalidInput(f"tags belong to ShareGPT rows, not to {carrier} rows", param="data")
    if not columns:
        return layout
    wanted = ["messages"] if carrier in ("sharegpt", "openai") else []
    if carrier == "alpaca" and not {"prompt", "query"} & set(columns):
        wanted.append("prompt")
    if carrier == "alpaca" and layout.goal != "preference":
        wanted.append("response")
    wanted += GOAL_COLUMNS[layout.goal] if layout.goal else ()
    if missing := [name for name in wanted if name not in columns]:
        raise InvalidInput(
            f"columns names no {missing[0]!r}; where columns are named, only these are read",
            param="data",
        )
    return layout


def _goal_of(columns: Mapping[str, str]) -> Goal:
    if "chosen" in columns or "rejected" in columns:
        return "preference"
    return "kto" if "kto_tag" in columns else "supervised"


def _carrier_of(
    columns: Mapping[str, str], tags: Mapping[str, str], goal: Goal | None
) -> Carrier | None:
    """LLaMA-Factory's pre-training rows are alpaca rows with a prompt and no response."""
    if tags:
        return "sharegpt"
    if "messages" in columns:
        return None
    if goal == "supervised" and set(columns) == {"prompt"}:
        return "text"
    return "alpaca"


def _check_names(what: str, given: Mapping[str, str], known: Mapping[str, object]) -> None:
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise InvalidInput(f"{what}: unknown name {name!r}; {hint}", param="data")
