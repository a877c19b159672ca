"""The OpenAPI document: it is whole, its examples work, and no route breaks its word.

schemathesis makes requests from the document, good and bad, and holds the answers against it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import httpx
import hypothesis
import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis.errors import Unsatisfiable
from jsonschema import Draft202012Validator
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.core.result import Ok
from schemathesis.python import asgi
from schemathesis.schemas import APIOperation, BaseSchema
from schemathesis.specs.openapi import checks as promises

from server.document.build import ANSWERS, EVENTS, operations
from server.document.examples import EXAMPLES, INFERENCE
from server.routes.openapi import ERROR_REF
from tests.server.control.conftest import KEY

Operation = APIOperation[Any, Any, Any, Any]
AnyCase = Case[Any]
CHECKS = [
    not_a_server_error,
    promises.status_code_conformance,
    promises.content_type_conformance,
    promises.response_headers_conformance,
    promises.response_schema_conformance,
    promises.unsupported_method,
    promises.allow_header_conformance,
    promises.ignored_auth,
]


NUM_COVERED = 30  # cases of an operation out of schemathesis' own list, spread over it
NUM_DRAWN = 4  # good ones, and as many bad ones

draw = hypothesis.settings(
    max_examples=NUM_DRAWN,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[hypothesis.Phase.generate],
    suppress_health_check=list(hypothesis.HealthCheck),
)


@pytest.fixture
def promised(whole_app: FastAPI) -> Iterator[BaseSchema]:
    yield schemathesis.openapi.from_asgi("/openapi.json", whole_app)
    asgi.shutdown_lifespans()


@pytest.fixture
def document(whole_app: FastAPI) -> dict[str, Any]:
    return whole_app.openapi()


def covered(schema: BaseSchema, operation: Operation) -> list[AnyCase]:
    """schemathesis' deliberate cases: limits, formats, methods, headers, each by itself."""
    cases = list(
        schema.iter_coverage_cases(
            operation,
            generation_modes=[GenerationMode.POSITIVE, GenerationMode.NEGATIVE],
            generation_config=schema.config.generation,
        )
    )
    return cases[:: -(-len(cases) // NUM_COVERED)] if cases else []


def drawn(operation: Operation, mode: GenerationMode) -> list[AnyCase]:
    found: list[AnyCase] = []

    @draw
    @hypothesis.given(operation.as_strategy(mode))
    def keep(case: AnyCase) -> None:
        found.append(case)

    with contextlib.suppress(Unsatisfiable):  # a route without a parameter can be asked nothing bad
        keep()
    return found


def problem_of(case: AnyCase) -> str | None:
    body: Any = case.body
    model = body.get("model") if isinstance(body, dict) else None
    if isinstance(model, str) and 1 <= len(model) <= 512:
        body["model"] = "tiny-base"  # or nearly all would be 404
    # A query may say anything beside what is read of it; a body may not.
    checks = CHECKS + [promises.negative_data_rejection] * (case.operation.method != "get")
    try:
        case.call_and_validate(headers={"Authorization": f"Bearer {KEY}"}, checks=checks)
    except FailureGroup as group:
        return "\n".join(f"{failure.title}: {failure.message}" for failure in group.exceptions)
    return None


def test_no_route_breaks_its_word(promised: BaseSchema) -> None:
    problems: dict[str, str] = {}
    num_cases = 0
    for found in promised.get_all_operations():
        assert isinstance(found, Ok), found
        operation = found.ok()
        cases = covered(promised, operation)
        for mode in GenerationMode.POSITIVE, GenerationMode.NEGATIVE:
            cases += drawn(operation, mode)
        for case in cases:
            num_cases += 1
            if (problem := problem_of(case)) is not None:
                problems[f"{operation.label} #{len(problems)}: {problem}"] = case.as_curl_command()
    assert num_cases > 500
    assert not problems, "\n\n".join(f"{what}\n  {how[:600]}" for what, how in problems.items())


def test_the_document_is_whole(document: dict[str, Any], promised: BaseSchema) -> None:
    promised.validate()
    ids, tags = [], {tag["name"] for tag in document["tags"] if tag["description"]}
    for path, operation in operations(document):
        name, answers = operation["operationId"], operation["responses"]
        ids.append(name)
        assert operation["summary"], path
        assert set(operation["tags"]) <= tags, path
        assert "422" not in answers, path
        if path.startswith("/health"):
            continue
        assert operation["security"], path
        assert {"400", "401", "500", "503"} <= set(answers), path
        for status, answer in answers.items():
            content = answer["content"]
            if int(status) >= 400:
                assert content["application/json"]["schema"] == ERROR_REF, path
            else:
                schema = next(iter(content.values()))["schema"]
                assert "$ref" in schema or schema["type"] == "string", (path, schema)
    assert len(ids) == len(set(ids)) > 40
    assert "HTTPValidationError" not in document["components"]["schemas"]
    assert set(EXAMPLES) <= set(ids)
    assert {*ANSWERS, *EVENTS} <= set(ids)


def bodies(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any], Any]]:
    """(path, operation id, schema, example) of each example."""
    for path, operation in operations(document):
        content = operation.get("requestBody", {}).get("content", {})
        if (media := content.get("application/json")) is not None:
            assert media["examples"], path
            for example in media["examples"].values():
                yield path, operation["operationId"], media["schema"], example["value"]


def test_every_example_fits_its_schema(document: dict[str, Any]) -> None:
    checked = list(bodies(document))
    for path, _, schema, example in checked:
        whole = {**schema, "components": document["components"]}
        problems = [error.message for error in Draft202012Validator(whole).iter_errors(example)]
        assert not problems, (path, problems)
    assert len(checked) >= 20


async def test_every_example_of_inference_is_answered_as_promised(
    whole_app: FastAPI, document: dict[str, Any]
) -> None:
    transport = httpx.ASGITransport(whole_app)
    headers = {"Authorization": f"Bearer {KEY}"}
    url = "http://localhost"
    seen = set()
    async with httpx.AsyncClient(transport=transport, base_url=url, headers=headers) as web:
        for path, name, _, example in bodies(document):
            if name not in INFERENCE:
                continue
            seen.add(name)
            response = await web.post(path, json=example)
            assert response.status_code == 200, (path, response.text)
            if name not in EVENTS:
                continue
            ANSWERS[name].model_validate(
                (await web.post(path, json=without_stream(example))).json()
            )
            response = await web.post(path, json={**example, "stream": True})
            for event in response.text.split("\n\n"):
                data = event.rpartition("data: ")[2]
                if data and data != "[DONE]":
                    EVENTS[name].model_validate(json.loads(data))
    assert seen == set(INFERENCE)


def without_stream(example: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in example.items() if not key.startswith("stream")}
