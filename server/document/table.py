"""docs/api.md's tables: parameter, honoured or refused, meaning; made from the schemas themselves.

``python -m server.document.table docs/api.md`` writes them anew between their marks.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from server.fields import REFUSED
from server.routes.lora import LoadLoraAdapter, UnloadLoraAdapter
from server.schemas.chat import ChatRequest
from server.schemas.completion import CompletionRequest
from server.schemas.responses import InputTokensRequest, ResponsesRequest
from server.schemas.sampling import SamplingFields
from server.schemas.tokens import DetokenizeRequest, TokenizeRequest

Schema = dict[str, Any]
BEGIN, END = "<!-- made by python -m server.document.table -->", "<!-- end of what is made -->"
SHARED = SamplingFields
TABLES: tuple[tuple[str, type[BaseModel]], ...] = (
    ("Shared by chats, completions and responses", SHARED),
    ("POST /v1/chat/completions", ChatRequest),
    ("POST /v1/completions", CompletionRequest),
    ("POST /v1/responses", ResponsesRequest),
    ("POST /v1/responses/input_tokens", InputTokensRequest),
    ("POST /tokenize", TokenizeRequest),
    ("POST /detokenize", DetokenizeRequest),
    ("POST /v1/load_lora_adapter", LoadLoraAdapter),
    ("POST /v1/unload_lora_adapter", UnloadLoraAdapter),
)
_WORDS = {"integer": "whole number", "boolean": "true or false"}
_HEAD = "| parameter | honoured as, or refused | meaning |\n|---|---|---|\n"


def tables() -> str:
    """All of them, in Markdown. What objects hold is told where they first appear."""
    told: set[str] = set()
    return "\n\n".join(_table(title, model, told) for title, model in TABLES)


def rewritten(page: str) -> str:
    """The page with its tables as they should be. Raises ValueError if its marks are missing."""
    before, _, rest = page.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise ValueError(f"the page has no {BEGIN} … {END}")
    return f"{before}{BEGIN}\n\n{tables()}\n\n{END}{after}"


def _table(title: str, model: type[BaseModel], told: set[str]) -> str:
    schema = model.model_json_schema()
    has_shared = model is not SHARED and issubclass(model, SHARED)
    shared = SHARED.model_json_schema()["properties"] if has_shared else {}
    rows = _Rows(schema.get("$defs", {}), told)
    lines = [
        row
        for name, one in schema["properties"].items()
        if shared.get(name) != one
        for row in rows.of(name, one, name in schema.get("required", ()))
    ]
    note = "Beside the shared ones:\n\n" if has_shared else ""
    return f"### {title}\n{note}{_HEAD}" + "\n".join(lines)


class _Rows:
    """The rows of one body. ``told`` are the objects whose keys were listed somewhere."""

    def __init__(self, defs: Schema, told: set[str]) -> None:
        self._defs = defs
        self._told = told

    def of(self, name: str, schema: Schema, is_required: bool) -> Iterator[str]:
        """One parameter, and what it holds."""
        if (because := schema.get(REFUSED)) is not None:
            neutral = [f"`{json.dumps(value)}`" for value in schema["enum"] if value is not None]
            but = f" but for {' and '.join(neutral)}" if neutral else ""
            yield _row(name, f"**refused**{but}", because)
            return
        kinds = " or ".join(dict.fromkeys(_kinds(schema, self._defs)))
        meaning = schema.get("description", "")
        yield _row(name, f"required: {kinds}" if is_required else kinds, meaning)
        for suffix, inner in _inner(schema, self._defs):
            if inner["title"] not in self._told:
                self._told.add(inner["title"])
                for key, one in inner["properties"].items():
                    is_inner_required = key in inner.get("required", ())
                    yield from self.of(f"{name}{suffix}.{key}", one, is_inner_required)


def _row(name: str, what: str, meaning: str) -> str:
    cells = [cell.replace("|", "\\|").replace("\n", " ") for cell in (what, meaning)]
    return f"| `{name}` | {cells[0]} | {cells[1]} |"


def _branches(schema: Schema, defs: Schema) -> list[Schema]:
    """The forms that a value may have, null left out."""
    if "$ref" in schema:
        return _branches(defs[schema["$ref"].rpartition("/")[2]], defs)
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return [one for branch in schema[key] for one in _branches(branch, defs)]
    return [] if schema.get("type") == "null" else [schema]


def _inner(schema: Schema, defs: Schema) -> Iterator[tuple[str, Schema]]:
    """Objects with keys of their own, and the way to them."""
    for branch in _branches(schema, defs):
        if "properties" in branch:
            yield "", branch
        elif isinstance(branch.get("items"), dict):
            for suffix, one in _inner(branch["items"], defs):
                yield "[]" + suffix, one


def _kinds(schema: Schema, defs: Schema) -> Iterator[str]:
    for branch in _branches(schema, defs):
        if "enum" in branch or "const" in branch:
            values: list[Any] = branch.get("enum", [branch.get("const")])
            yield ", ".join(f"`{json.dumps(value)}`" for value in values)
        elif branch.get("type") == "array":
            items = " or ".join(dict.fromkeys(_kinds(branch.get("items", {}), defs)))
            yield f"list of {items}{_limits(branch, 'minItems', 'maxItems')}"
        elif branch.get("type") == "object":
            yield "object" + _limits(branch, "minProperties", "maxProperties")
        elif "pattern" in branch:
            yield f"text like `{branch['pattern']}`"
        elif branch.get("type") == "string":
            yield "text" + _limits(branch, "minLength", "maxLength")
        elif "type" in branch:
            kind = str(branch["type"])
            yield _WORDS.get(kind, kind) + _range(branch)
        else:
            yield "anything"


def _limits(schema: Schema, least: str, most: str) -> str:
    """``(1 to 64)`` of lengths; an upper bound alone is the one worth saying."""
    low, high = schema.get(least), schema.get(most)
    if high is None:
        return ""
    return f" ({low} to {high})" if low and low != high else f" (up to {high})"


def _range(schema: Schema) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    parts = [] if low is None or low <= -(2**31) else [f"from {low:g}"]
    parts += [] if above is None else [f"above {above:g}"]
    parts += [] if high is None else [f"to {high:g}"]
    parts += [] if below is None or below >= 2**31 else [f"below {below:g}"]
    return " " + " ".join(parts) if parts else ""


def main() -> None:
    path = Path(sys.argv[1])
    page = rewritten(path.read_text(encoding="utf-8"))
    path.write_text(re.sub(r"\n{3,}", "\n\n", page), encoding="utf-8")


if __name__ == "__main__":
    main()
