"""A pydantic complaint as one sentence that names the field. No HTTP, no schema of its own."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

KNOWN_KEYS_LIMIT = 1  # how many near names a message offers

_UNION_LABEL = re.compile(
    r"^(str|int|float|bool|none|dict\[.*|list\[.*|tuple\[.*|constrained-.*|function-.*|[A-Z]\w*)$"
)


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a request, for OpenAI's ``message``, ``param`` and ``code``."""

    message: str
    param: str | None
    code: str | None


def explain(errors: Sequence[Mapping[str, Any]], content_type: str | None = None) -> Problem:
    """The most telling of pydantic's ``errors``: of a union's branches the one that got furthest.
    """
    error = max(errors, key=lambda e: len(e["loc"]))
    kind = str(error["type"])
    context: Mapping[str, Any] = error.get("ctx") or {}
    param = param_of(error["loc"])
    if kind == "json_invalid":
        where = error["loc"][-1] if error["loc"] else 0
        message = f"The request body is not valid JSON: {context.get('error')} at byte {where}."
        return Problem(message, None, "invalid_json")
    if param is None and not _is_json(content_type):
        message = f"Send the body as JSON with Content-Type: application/json, not {content_type}."
        return Problem(message, None, "unsupported_content_type")
    if kind == "missing":
        name = param or "the request body"
        return Problem(f"Missing required parameter: {name}.", param, "missing_required_parameter")
    if kind == "extra_forbidden":
        return Problem(f"Unknown parameter: {param}.", param, "unknown_parameter")
    if kind in ("unknown_parameter", "unsupported_parameter"):
        param = str(context["param"]) if "param" in context else param
        return Problem(str(error["msg"]), param, kind)
    name = param or "the request body"
    return Problem(
        f"Invalid value for {name}: {_sentence(str(error['msg']))}", param, "invalid_value"
    )


def param_of(loc: Sequence[str | int]) -> str | None:
    """``("body", "messages", 0, "content", "str")`` → ``messages[0].content``."""
    text = ""
    for part in loc[1:] if loc and loc[0] in ("body", "query", "path", "header") else loc:
        if isinstance(part, int):
            text += f"[{part}]"
        elif not _UNION_LABEL.match(part):
            text += f".{part}" if text else part
    return text or None


def nearest(name: str, known: Sequence[str]) -> str | None:
    """The known name that a typing error most likely meant."""
    matches = difflib.get_close_matches(name.lower(), known, n=KNOWN_KEYS_LIMIT, cutoff=0.6)
    return matches[0] if matches else None


def _is_json(content_type: str | None) -> bool:
    if content_type is None:
        return False
    essence = content_type.split(";")[0].strip().lower()
    return essence == "application/json" or essence.endswith("+json")


def _sentence(text: str) -> str:
    text = text.removeprefix("Value error, ")
    return text if text.endswith((".", "?")) else text + "."
