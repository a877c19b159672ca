"""Whatever is sent, to whichever route: OpenAI's error body, in words of the request, at once."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import ValidationError

from server.document.examples import examples_for
from server.fields import StrictBody
from server.request_errors import explain
from tests.server.control.conftest import KEY
from tests.server.test_bad_input import error_of

CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json"}
USER = {"role": "user", "content": "x"}


@pytest.fixture
async def web(whole_app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(whole_app, raise_app_exceptions=False)
    headers = {"Authorization": f"Bearer {KEY}"}
    url = "http://localhost"
    async with httpx.AsyncClient(transport=transport, base_url=url, headers=headers) as client:
        yield client


def with_bodies(app: FastAPI) -> list[tuple[str, str, str]]:
    """(method, URL, operation id) of what takes JSON."""
    found = []
    for path, by_method in app.openapi()["paths"].items():
        for method, operation in by_method.items():
            if "application/json" in operation.get("requestBody", {}).get("content", {}):
                url = path.replace("{", "").replace("}", "")
                found.append((method.upper(), url, operation["operationId"]))
    return found


BAD_BODIES = {
    "empty": b"",
    "cut": b"{",
    "a list": b"[]",
    "null": b"null",
    "not UTF-8": b'{"model": "\xff\xfe"}',
    "UTF-16": '{"model": "x"}'.encode("utf-16"),
    "100,000 lists": b"[" * 100_000,
    "100,000 objects": b'{"model":' * 100_000,
    "closed and deep": b'{"metadata":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a long number": b'{"n": ' + b"9" * 5000 + b"}",
    "no number": b'{"n": NaN, "version": NaN}',
    "half a pair": b'{"model": "\\ud800", "\\udfff": 1}',
    "a control character": b'{"model": "\x01"}',
    "an unknown key": b'{"__class__": "x"}',
}


async def test_no_route_takes_a_body_that_is_none(
    web: httpx.AsyncClient, whole_app: FastAPI
) -> None:
    routes = with_bodies(whole_app)
    assert len(routes) > 12
    for method, url, _ in routes:
        for what, content in BAD_BODIES.items():
            response = await web.request(method, url, content=content, headers=JSON)
            error = error_of(response, 400)
            assert not leak(error), (url, what, error)


async def test_duplicate_keys_mean_the_last_as_everywhere(web: httpx.AsyncClient) -> None:
    content = json.dumps({"model": "tiny-base", "messages": [USER]})[:-1]
    twice = content + ', "temperature": 9, "temperature": 0}'
    assert (await web.post(CHAT, content=twice, headers=JSON)).status_code == 200
    twice = content + ', "temperature": 0, "temperature": 9}'
    error = error_of(await web.post(CHAT, content=twice, headers=JSON), 400)
    assert error["param"] == "temperature"


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value, its own included."""
    yield path
    keys: Any = value if isinstance(value, dict) else ()
    if isinstance(value, list):
        keys = range(len(value))
    for key in keys:
        yield from places(value[key], (*path, key))


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = put(value[path[0]], path[1:], new)
    return copy


DEEP: Any = "x"
for _ in range(400):
    DEEP = [DEEP]
NASTY: tuple[Any, ...] = (
    "\ud800",
    float("nan"),
    float("inf"),
    {"\udfff": 1},
    DEEP,
    -(10**40),
    {"$ref": "#"},
    [[]],
)


async def test_nothing_nasty_anywhere_in_a_body_is_our_failure(
    web: httpx.AsyncClient, whole_app: FastAPI
) -> None:
    num_sent = 0
    examples = examples_for("tiny-base")
    for method, url, name in with_bodies(whole_app):
        for body in examples[name].values():
            for place in places(body):
                for nasty in NASTY:
                    content = json.dumps(put(body, place, nasty))
                    response = await web.request(method, url, content=content, headers=JSON)
                    num_sent += 1
                    assert response.status_code < 500, (url, place, content, response.text)
                    if response.status_code >= 400:
                        error = error_of(response, response.status_code)
                        assert not leak(error), (url, place, error)
    assert num_sent > 1000


LEAK = re.compile(
    r"~|function-|\btagged|discriminat|instance of|constrained|json-or|validator|pydantic|"
    r"dictionary|\bdict\b|\bstr\b|\bint\b|\bbool\b|\bfloat\b|NoneType|\[\w+,\s*\w+\]|_\w+\(\)|ctx"
)


def leak(error: dict[str, Any]) -> bool:
    """Whether Python shows through."""
    return bool(LEAK.search(f"{error['param']} {error['message']}"))


def strict_bodies(cls: type[StrictBody] = StrictBody) -> Iterator[type[StrictBody]]:
    for one in cls.__subclasses__():
        yield one
        yield from strict_bodies(one)


WRONG: tuple[Any, ...] = (
    [],
    {},
    [[]],
    [{}],
    ["x"],
    "x",
    5,
    -1,
    1.5,
    True,
    {"type": "x"},
    [{"type": "x"}],
    {"x": 1},
)


def test_no_complaint_speaks_of_python() -> None:
    """Of any field of any body, nested ones too, given anything."""
    models = [model for model in strict_bodies() if model.__module__.startswith("server.")]
    assert len(models) > 40
    for model in models:
        for name, field in model.model_fields.items():
            for wrong in WRONG:
                body = {field.alias or name: wrong}
                try:
                    model.model_validate(body)
                except ValidationError as problem:
                    errors = [{**one, "loc": ("body", *one["loc"])} for one in problem.errors()]
                    for at in range(len(errors)):
                        said = explain(errors[at:], "application/json", body)
                        error = {"param": said.param, "message": said.message}
                        assert not leak(error), (model, body, error)


METHODS = ("HEAD", "OPTIONS", "PATCH", "TRACE", "GET", "PUT", "DELETE")


async def test_a_wrong_method_names_the_right_ones(
    web: httpx.AsyncClient, whole_app: FastAPI
) -> None:
    paths = whole_app.openapi()["paths"].items()
    for method, (path, by_method) in itertools.product(METHODS, paths):
        if method.lower() in by_method or (method == "GET" and "{model}" in path):
            continue
        url = path.replace("{", "").replace("}", "")
        response = await web.request(method, url)
        if response.status_code == 404 or (method == "GET" and response.status_code == 200):
            continue  # another path takes it: /v1/responses/{id} is also …/input_tokens
        assert response.status_code == 405, (method, path, response.text)
        if method != "HEAD":
            error_of(response, 405)
        allowed = response.headers["allow"].split(", ")
        assert {name.upper() for name in by_method} <= set(allowed), path


BAD_QUERIES = {
    "/v1/files?limit=x": "limit",
    "/v1/files?limit=0": "limit",
    "/v1/files?limit=99999999999999999999999": "limit",
    "/v1/files?order=up": "order",
    "/v1/fine_tuning/jobs?limit=-1": "limit",
    "/admin/audit?after=x": "after",
    "/admin/audit?after=99999999999999999999999999": "after",
    "/admin/stats?window=NaN": "window",
    "/admin/stats?window=inf": "window",
}


async def test_a_bad_query_is_named(web: httpx.AsyncClient) -> None:
    for url, param in BAD_QUERIES.items():
        error = error_of(await web.get(url), 400)
        assert error["param"] == param, url
        assert not leak(error)


async def test_a_bad_header_is_named(web: httpx.AsyncClient) -> None:
    body = {"model": "tiny-base", "messages": [USER]}
    for value in ("x", "-1", "0", "nan", "inf", ""):
        response = await web.post(CHAT, json=body, headers={"x-request-timeout": value})
        assert error_of(response, 400)["param"] == "x-request-timeout", value


STRANGE = ("%00", "%ff%fe", "%0a", "..%2f..%2fetc", "x" * 4000, "%ed%a0%80")


async def test_a_strange_path_is_not_our_failure(
    web: httpx.AsyncClient, whole_app: FastAPI
) -> None:
    paths = [each for each in whole_app.openapi()["paths"].items() if "{" in each[0]]
    for name, (path, by_method) in itertools.product(STRANGE, paths):
        url = re.sub(r"\{\w+\}", name, path)
        for method in by_method:
            response = await web.request(method, url, json={})
            assert 400 <= response.status_code < 500, (method, path, response.text)
            error_of(response, response.status_code)
