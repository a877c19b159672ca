"""docs/api.md: its tables are the schemas', and what they say of refusals is so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from server.document.table import TABLES, rewritten
from server.fields import REFUSED
from server.request_errors import explain

PAGE = Path(__file__).parents[2] / "docs" / "api.md"
STRANGE = "surely nothing that changes nothing"


def test_the_page_is_what_the_schemas_make_of_it() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert rewritten(page) == page, "run python -m server.document.table docs/api.md"


def refused_fields() -> Iterator[tuple[type[BaseModel], str, list[Any]]]:
    for _, model in TABLES:
        for name, one in model.model_json_schema()["properties"].items():
            if REFUSED in one:
                yield model, name, one["enum"]


@pytest.mark.parametrize(("model", "name", "neutral"), list(refused_fields()))
def test_what_is_refused_passes_at_its_neutral_values_alone(
    model: type[BaseModel], name: str, neutral: list[Any]
) -> None:
    for value in neutral:
        assert name not in complaints(model, {name: value})
    error = complaints(model, {name: STRANGE})[name]
    assert error["code"] in ("unsupported_parameter", "invalid_value")  # or not even of its type
    field = model.model_json_schema()["properties"][name]
    if "anyOf" not in field and error["code"] == "unsupported_parameter":
        assert field[REFUSED] in error["message"]


def complaints(model: type[BaseModel], body: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Parameter → what is said of it."""
    try:
        TypeAdapter(model).validate_python(body)
    except ValidationError as problem:
        found = {}
        for error in problem.errors():
            placed = {**error, "loc": ("body", *error["loc"])}
            said = explain([placed], "application/json", body)
            found[str(said.param)] = {"code": said.code, "message": said.message}
        return found
    return {}


def test_every_parameter_that_is_honoured_says_what_it_does() -> None:
    silent = [
        f"{model.__name__}.{name}"
        for _, model in TABLES
        for name, one in model.model_json_schema()["properties"].items()
        if not one.get("description")
    ]
    assert not silent
