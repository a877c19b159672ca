"""A pydantic complaint as one sentence that names the field. No HTTP, no schema of its own."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Complaints of ``server.fields`` whose message is already a whole sentence.
_SENTENCES = ("unknown_parameter", "unsupported_parameter", "invalid_combination")

# pydantic's words for these name Python's types, our classes or functions.
_COUNTED = re.compile("^(List|Dictionary|String) should")
MAX_FORMS = 16  # that a value may have; pydantic complains of each in turn
_OBJECT, _FORM = "an object", "of one of the forms that this parameter has"
_KINDS = {
    "dict_type": _OBJECT,
    "mapping_type": _OBJECT,
    "model_type": _OBJECT,
    "model_attributes_type": _OBJECT,
    "list_type": "a list",
    "string_type": "a string",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "none_required": "null",
    "union_tag_invalid": _FORM,
    "union_tag_not_found": _FORM,
}


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a request, for OpenAI's ``message``, ``param`` and ``code``."""

    message: str
    param: str | None
    code: str | None


def explain(
    errors: Sequence[Mapping[str, Any]], content_type: str | None = None, body: Any = None
) -> Problem:
    """The first of pydantic's ``errors`` in words. ``body`` is what was validated, parsed."""
    error = errors[0]
    kind = str(error["type"])
    context: Mapping[str, Any] = error.get("ctx") or {}
    if kind == "json_invalid":
        message = (
            f"The request body is not valid JSON: {context.get('error')} at {error['loc'][-1]}."
        )
        return Problem(message, None, "invalid_json")
    param = _param(error, body)
    if param is None and not _is_json(content_type):
        shown = (content_type or "nothing").encode("utf-8", "replace").decode()
        message = f"Send the body as JSON with Content-Type: application/json, not {shown}."
        return Problem(message, None, "unsupported_content_type")
    name = param or "the request body"
    if kind == "missing":
        return Problem(f"Missing required parameter: {name}.", param, "missing_required_parameter")
    if kind in _SENTENCES:
        return Problem(str(error["msg"]), param, kind)
    sentence = _sentence(_words(errors, param, body))
    return Problem(f"Invalid value for {name}: {sentence}", param, "invalid_value")


def _param(error: Mapping[str, Any], body: Any) -> str | None:
    context: Mapping[str, Any] = error.get("ctx") or {}
    is_missing = error["type"] == "missing"
    return _join(param_of(error["loc"], body, is_missing=is_missing), context.get("param"))


def param_of(loc: Sequence[str | int], body: Any, *, is_missing: bool = False) -> str | None:
    """``("body", "messages", 0, "content", "~many", 1)`` → ``messages[0].content[1]``.

    pydantic also names which form of a union it tried (``~many``, ``list[str]``, ``int``). Those
    parts are no places in the body, and nobody else's business.
    """
    if not loc or loc[0] != "body":
        return ".".join(map(str, loc[1:])) or None
    text = ""
    for at, part in enumerate(loc[1:], start=2):
        if isinstance(part, int):
            if isinstance(body, list) and part < len(body):
                text, body = f"{text}[{part}]", body[part]
        elif isinstance(body, dict) and part in body:
            text, body = _join(text, part) or "", body[part]
        elif isinstance(body, dict) and is_missing and at == len(loc):
            text = _join(text, part) or ""
    return text.encode("utf-8", "replace").decode() or None


def _words(errors: Sequence[Mapping[str, Any]], param: str | None, body: Any) -> str:
    """What the value should have been, in every form that may stand there."""
    first = _wanted(errors[0])
    if first is None:
        return str(errors[0]["msg"])
    near = errors[:MAX_FORMS]
    same = [_wanted(error) for error in near if _param(error, body) == param]
    wanted = list(dict.fromkeys(word for word in same if word is not None))
    return f"it should be {' or '.join(wanted)}"


def _wanted(error: Mapping[str, Any]) -> str | None:
    if (word := _KINDS.get(str(error["type"]))) is not None:
        return word
    message = str(error["msg"])
    start = "Input should be "
    return message.removeprefix(start) if message.startswith(start) else None


def _join(outer: str | None, inner: str | None) -> str | None:
    if outer and inner and inner.startswith("["):
        return outer + inner
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
    text = _COUNTED.sub("it should", text.removeprefix("Value error, "))
    text = text.replace(" after validation", "")
    return text if text.endswith((".", "?")) else text + "."
