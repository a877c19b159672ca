"""From the form that a client asks for to a grammar. Knows no tokenizer and compiles nothing.

JSON is written as models write it: after each bracket, comma, colon and value there may be one
space, or a line break and an indentation. More is not allowed, so that no model spends its tokens
on white space.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from llguidance import regex_to_lark

from server.answers.grammars.schema import MAX_REGEX_BYTES, UnusableSchema, check_schema
from server.errors import ApiError
from server.schemas.formats import (
    JsonObjectFormat,
    JsonSchemaFormat,
    ResponseFormat,
    StructuredOutputs,
)

MAX_SCHEMA_BYTES = 256 * 1024
MAX_GRAMMAR_BYTES = 128 * 1024
MAX_CHOICE_BYTES = 128 * 1024

_JSON = "%json"
_SPACE = r"\x20|\r?\n[\x20\t]{0,64}"
# No \uXXXX: a name that is listed could be written in letters that do not look like it.
_GUIDANCE = {"whitespace_pattern": _SPACE, "json_allowed_escapes": 'nrbtf\\"', "lenient": False}


@dataclass(frozen=True, slots=True)
class Constraint:
    """A whole grammar in llguidance's Lark dialect, or its JSON form; ``start`` is its rule.

    ``param`` and ``code`` say what to blame if it does not compile.
    """

    lark: str
    param: str
    code: str = "invalid_grammar"


def format_constraint(
    response_format: ResponseFormat | None, structured_outputs: StructuredOutputs | None
) -> Constraint | None:
    """What the answer has to be, None for any text.

    Raises:
        ApiError: both are given, or there is nothing that could be held to exactly.
    """
    asked = None if response_format is None else _of_response_format(response_format)
    if structured_outputs is None:
        return asked
    if asked is not None:
        message = "Give one of response_format and structured_outputs, not both."
        raise ApiError(400, message, param="structured_outputs", code="invalid_combination")
    return _of_structured_outputs(structured_outputs)


def json_expression(schema: Any, param: str) -> str:
    """A Lark expression for the JSON that ``schema`` admits. Raises ApiError that names ``param``.

    The schema is an object, true or false.
    """
    text = json_text(schema, param)
    _check_size(text, MAX_SCHEMA_BYTES, param, "invalid_schema")
    try:
        schema = check_schema(schema)
    except UnusableSchema as error:
        message = f"Answers cannot be held to this JSON schema. {error}"
        raise ApiError(400, message, param=param, code="invalid_schema") from None
    if schema is False:
        message = "The JSON schema false admits no answer."
        raise ApiError(400, message, param=param, code="invalid_schema")
    whole = {"x-guidance": _GUIDANCE, **({} if schema is True else schema)}
    return f"{_JSON} {json.dumps(whole, ensure_ascii=False)}"


def json_text(value: Any, param: str) -> str:
    """``value`` as JSON. Raises ApiError for what no JSON in UTF-8 can hold."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
    except (ValueError, RecursionError) as error:
        message = f"Invalid value for {param}: it cannot be written as JSON ({error})."
        raise ApiError(400, message, param=param, code="invalid_schema") from None
    return text


def _of_response_format(asked: ResponseFormat) -> Constraint | None:
    if isinstance(asked, JsonObjectFormat):
        return _json({"type": "object"}, "response_format")
    if isinstance(asked, JsonSchemaFormat):
        schema = asked.json_schema.schema_
        return _json({} if schema is None else schema, "response_format.json_schema.schema")
    return None


def _of_structured_outputs(asked: StructuredOutputs) -> Constraint:
    field = "structured_outputs"
    if asked.json_ is not None:
        param = f"{field}.json"
        return _json(_parsed(asked.json_, param), param)
    if asked.regex is not None:
        return _regex(asked.regex, f"{field}.regex")
    if asked.choice is not None:
        return _choice(asked.choice, f"{field}.choice")
    if asked.grammar is not None:
        return _grammar(asked.grammar, f"{field}.grammar")
    return _json({"type": "object"}, f"{field}.json_object")


def _json(schema: Any, param: str) -> Constraint:
    return Constraint(f"start: {json_expression(schema, param)}", param, "invalid_schema")


def _parsed(schema: Any, param: str) -> Any:
    if not isinstance(schema, str):
        return schema
    _check_size(schema, MAX_SCHEMA_BYTES, param, "invalid_schema")
    try:
        return json.loads(schema)
    except (ValueError, RecursionError) as error:
        message = f"Invalid value for {param}: it is not JSON ({error})."
        raise ApiError(400, message, param=param, code="invalid_schema") from None


def _regex(regex: str, param: str) -> Constraint:
    """A lexeme matches as a whole, so that nothing needs anchors."""
    _check_size(regex, MAX_REGEX_BYTES, param, "invalid_regex")
    return Constraint(f"start: /{regex_to_lark(regex, '')}/", param, "invalid_regex")


def _choice(texts: list[str], param: str) -> Constraint:
    lark = "start: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in texts)
    _check_size(lark, MAX_CHOICE_BYTES, param, "invalid_value")
    return Constraint(lark, param, "invalid_value")


def _grammar(text: str, param: str) -> Constraint:
    """Schemas in it are held to what they are elsewhere."""
    _check_size(text, MAX_GRAMMAR_BYTES, param, "invalid_grammar")
    if text.lstrip().startswith("{"):
        message = f"Invalid value for {param}: it is JSON, not a grammar in Lark's syntax."
        raise ApiError(400, message, param=param, code="invalid_grammar")
    before, *others = text.split(_JSON)
    parts = [before]
    for other in others:
        text = other.lstrip()
        try:
            schema, end = json.JSONDecoder().raw_decode(text)
        except (ValueError, RecursionError) as error:
            message = f"Invalid value for {param}: after {_JSON} there is no JSON ({error})."
            raise ApiError(400, message, param=param, code="invalid_grammar") from None
        parts += json_expression(schema, param), text[end:]
    return Constraint("".join(parts), param)


def _check_size(text: str, limit: int, param: str, code: str) -> None:
    size = len(text.encode())
    if size > limit:
        message = f"Invalid value for {param}: it has {size} bytes, at most {limit} are accepted."
        raise ApiError(400, message, param=param, code=code)
