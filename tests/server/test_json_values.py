"""JSON that is handed on: only what can be written down again, and the place of what cannot."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic_core import PydanticCustomError

from server.json_values import MAX_DEPTH, check_json


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "place", "what"),
    [
        ({"a": [1, {"b": "x\ud800"}]}, "a[1].b", "character 1 is half of a surrogate pair"),
        ({"a": {"\udfff": 1}}, "a", "half of a surrogate pair"),
        ({"a": [float("nan")]}, "a[0]", "nan is no number"),
        ({"a": float("-inf")}, "a", "-inf is no number"),
        ({"a": nested(MAX_DEPTH)}, "a" + "[0]" * MAX_DEPTH, "nested more than"),
    ],
)
def test_what_cannot_be_written_is_named(value: Any, place: str, what: str) -> None:
    with pytest.raises(PydanticCustomError) as problem:
        check_json(value)
    context = problem.value.context
    assert context is not None
    assert place.startswith(context["param"].removesuffix("…"))
    assert context["param"][:5] == place[:5]
    assert what in problem.value.message()


def test_the_rest_is_as_it_was() -> None:
    value = {"a": [1, 2.5, True, None, "你好 \U0001f600 \x00", {"": nested(MAX_DEPTH - 3)}]}
    assert check_json(value) is value
