"""A pydantic complaint as one sentence that names the field. No HTTP, no schema of its own."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Complaints of ``server.fields`` whose message is already a whole sentence.
_SENTENCES = ("unknown_parameter", "unsupported_parameter", "invalid_combination")


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a request, for OpenAI's ``message``, ``param`` and ``code``."""

    message: str
    param: str | None
    code: str | None


def explain(errors: Sequence[Mapping[str, Any]], content_type: str | None = None) -> Problem:
    """The first of pydantic's ``errors`` in words."""
    error = errors[0]
    kind = str(error["type"])
    context: Mapping[str, Any] = error.get("ctx") or {}
    if kind == "json_invalid":
        message = (
            f"The request body is not valid JSON: {context.get('error')} at {error['loc'][-1]}."
        )
        return Problem(message, None, "invalid_json")
    param = _join(param_of(error["loc"]), context.get("param"))
    if param is None and not _is_json(content_type):
        message = f"Send the body as JSON with Content-Type: application/json, not {content_type}."
        return Problem(message, None, "unsupported_content_type")
    name = param or "the request body"
    if kind == "missing":
        return Problem(f"Missing required parameter: {name}.", param, "missing_required_parameter")
    if kind in _SENTENCES:
        return Problem(str(error["msg"]), param, kind)
    sentence = _sentence(str(error["msg"]))
    return Problem(f"Invalid value for {name}: {sentence}", param, "invalid_value")


def param_of(loc: Sequence[str | int]) -> str | None:
    """``("body", "messages", 0, "content", "~many", 1)`` → ``messages[0].content[1]``.

    Parts that start with ~ are the tags of ``server.fields.OneOrMany``.
    """
    text = ""
    for part in loc[1:] if loc and loc[0] in ("body", "query", "path", "header") else loc:
        if isinstance(part, int):
            text += f"[{part}]"
        elif not part.startswith("~"):
            text = _join(text, part) or ""
    return text or None


def _join(outer: str | None, inner: str | None) -> str | None:
    return f"{outer}.{inner}" if outer and inner else outer or inner


def nearest(name: str, known: Sequence[str]) -> str | None:
    """The known name that a typing error most likely meant."""
    matches = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.6)
    return matches[0] if matches else None


def _is_json(content_type: str | None) -> bool:
    if content_type is None:
        return False
    essence = content_type.split(";")[0].strip().lower()
    return essence == "application/json" or essence.endswith("+json")


def _sentence(text: str) -> str:
    text = text.removeprefix("Value error, ")
    return text if text.endswith((".", "?")) else text + "."
