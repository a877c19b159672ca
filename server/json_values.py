"""JSON inside a request that goes elsewhere as it is: schemas, variables of a template.

Python's parser takes more than JSON is: NaN, and half a surrogate pair, which fail only where
somebody writes them down again. Knows no HTTP.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import AfterValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

MAX_DEPTH = 128  # nested objects and lists; what comes after recurses
MAX_VALUES = 200_000


def check_json(value: Any) -> Any:
    """``value``, if it can be written as JSON. Raises PydanticCustomError that names the place."""
    waiting, num_values = [("", value, 0)], 0
    while waiting:
        place, inner, depth = waiting.pop()
        num_values += 1
        if depth > MAX_DEPTH:
            raise _bad(place, f"it is nested more than {MAX_DEPTH} deep")
        if num_values > MAX_VALUES:
            raise _bad("", f"it has more than {MAX_VALUES} values")
        if isinstance(inner, str):
            _check_text(inner, place)
        elif isinstance(inner, float):
            if not math.isfinite(inner):
                raise _bad(place, f"{inner} is no number in JSON")
        elif isinstance(inner, dict):
            for key, one in inner.items():
                _check_text(key, place)
                waiting.append((f"{place}.{key}" if place else key, one, depth + 1))
        elif isinstance(inner, list):
            waiting += [(f"{place}[{i}]", one, depth + 1) for i, one in enumerate(inner)]
    return value


def _check_text(text: str, place: str) -> None:
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            what = f"character {error.start} is half of a surrogate pair, which no text can hold"
            raise _bad(place, what) from None


def _bad(place: str, what: str) -> PydanticCustomError:
    shown = place if len(place) <= 200 else place[:200] + "…"
    return PydanticCustomError("invalid_json_value", "{what}", {"what": what, "param": shown})


# Whatever JSON can say, and an object of it.
Json = Annotated[Any, AfterValidator(check_json), WithJsonSchema({})]
JsonObject = Annotated[
    dict[str, Any],
    AfterValidator(check_json),
    WithJsonSchema({"type": "object", "additionalProperties": True}),
]
