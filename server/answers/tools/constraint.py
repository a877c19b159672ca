"""Grammars of answers that may or must hold calls.

Wherever a call begins it is held to be a whole one of an offered function. Its arguments follow the
function's schema where the call is forced or the function is ``strict``, else they are some JSON
object. Only Llama's calls, which begin with no mark, are left alone while nothing is strict: a text
that begins with ``{`` may be anything. Compiles nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from server.answers.grammars.constraint import Constraint, json_expression
from server.answers.tools.choice import Offer
from server.answers.tools.formats import ToolFormat
from server.errors import ApiError
from server.schemas.tools import Function

ANY_TEXT = r"/(.|\n)*/"
NO_OBJECT = r"/(\s*[^\s{](.|\n)*)?/"  # what cannot begin one of Llama's calls
Literal = Callable[[str], str]  # a text as a Lark expression, special tokens as such


def answer_constraint(
    form: ToolFormat, offer: Offer, wanted: Constraint | None, literal: Literal
) -> Constraint | None:
    """What the answer may be, None for anything. ``wanted`` is its form where it is no call.

    Raises:
        ApiError: a function's parameters are none that arguments can be held to, or ``wanted`` and
            the base's calls cannot be told apart.
    """
    if not offer.callable:
        return wanted or _no_call(form, literal)
    if not offer.must_call and not _is_held(form, offer) and wanted is None:
        return None
    rules = list(_calls(form, offer, literal))
    if offer.must_call:
        return Constraint("\n".join([f"start: {_series(form, offer, literal)}", *rules]), "tools")
    if wanted is not None:
        if not form.reading.mark:
            message = (
                "This base writes calls as plain JSON, which no form of an answer can be told "
                f"from: send {wanted.param} with tool_choice none, or tools without it."
            )
            raise ApiError(400, message, param=wanted.param, code="invalid_combination")
        rules.append(f"start: {_series(form, offer, literal)} | @wanted")
        named = [("answer", "\n".join(rules)), ("wanted", wanted.lark)]
        grammars = [{"name": name, "lark_grammar": lark} for name, lark in named]
        return Constraint(json.dumps({"grammars": grammars}), wanted.param, wanted.code)
    return Constraint("\n".join([*_running_text(form, offer, literal), *rules]), "tools")


def is_certain(form: ToolFormat, offer: Offer, has_format: bool) -> bool:
    """Whether a grammar makes sure that what begins as a call is a whole one."""
    return offer.must_call or has_format or _is_held(form, offer)


def _is_held(form: ToolFormat, offer: Offer) -> bool:
    return bool(form.reading.mark) or any(tool.function.strict for _, tool in offer.callable)


def _no_call(form: ToolFormat, literal: Literal) -> Constraint | None:
    mark = form.reading.mark
    if not mark:
        return None
    return Constraint(f"start: TEXT\nTEXT: {_text_without(mark, literal)}", "tool_choice")


def _text_without(mark: str, literal: Literal) -> str:
    if _is_token(mark, literal):  # which no text can say
        return ANY_TEXT
    return rf"{ANY_TEXT} & ~/(.|\n)*{re.escape(mark)}(.|\n)*/"


def _running_text(form: ToolFormat, offer: Offer, literal: Literal) -> Iterator[str]:
    """Text with calls in it. A mark that is no token of its own ends the text lazily."""
    mark = form.reading.mark
    if not mark:
        yield f"start: {_series(form, offer, literal)} | TEXT"
        yield f"TEXT: {NO_OBJECT}"
        return
    rest = _series(form, offer, literal, has_mark=False)
    how = "" if _is_token(mark, literal) else "[lazy]"
    yield f"start: (lead {rest}){'*' if offer.is_parallel else '?'} LAST"
    yield f"lead{how}: TEXT {literal(mark)}"
    yield f"TEXT: {ANY_TEXT}"
    yield f"LAST: {ANY_TEXT if offer.is_parallel else _text_without(mark, literal)}"


def _series(form: ToolFormat, offer: Offer, literal: Literal, *, has_mark: bool = True) -> str:
    """An expression for calls that follow each other, or for all of it behind the first mark.

    In running text those of a form without marks around all calls are each a series of one.
    """
    writing = form.writing
    more = ""
    if offer.is_parallel and (has_mark or writing.opener):
        more = f"({literal(writing.separator)} {literal(writing.before)} call)*"
    begin = writing.opener + writing.before
    if not has_mark:
        begin = begin.removeprefix(form.reading.mark)
    parts = [literal(begin), "call", more, literal(writing.closer) if writing.closer else ""]
    return " ".join(part for part in parts if part)


def _calls(form: ToolFormat, offer: Offer, literal: Literal) -> Iterator[str]:
    """The rules of calls, from the name on."""
    writing = form.writing
    yield "call: " + " | ".join(f"call_{place}" for place, _ in offer.callable)
    yield f"arguments: {json_expression({'type': 'object'}, 'tools')}"
    for place, tool in offer.callable:
        function, rule = tool.function, "arguments"
        if offer.must_call or function.strict:
            rule, param = f"arguments_{place}", f"tools[{place}].function.parameters"
            yield f"{rule}: {json_expression(_schema(function, param), param)}"
        head, tail = literal(function.name + writing.between), literal(writing.after)
        yield f"call_{place}: {head} {rule} {tail}"


def _schema(function: Function, param: str) -> dict[str, Any]:
    """OpenAI: a function without parameters takes an empty object."""
    if function.parameters is None:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    schema = {"type": "object", **function.parameters}
    if schema["type"] != "object":
        message = f"{param} is a schema of {schema['type']!r}; arguments are an object."
        raise ApiError(400, message, param=param, code="invalid_value")
    return schema


def _is_token(mark: str, literal: Literal) -> bool:
    return literal(mark).startswith("<[")
