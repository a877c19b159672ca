"""Whatever is wrong with a request: OpenAI's error body, the field named, nothing begun."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from artifacts.errors import NotFound
from server.engine.errors import EngineClosed, EngineOverloaded
from server.state import Server
from tests.server.conftest import serving
from tests.server.fakes import FakeAdapters, FakeEngine

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
HELLO: dict[str, Any] = {"model": "tiny-base", "messages": [{"role": "user", "content": "hi"}]}
PLAIN: dict[str, Any] = {"model": "tiny-base", "prompt": "hi"}
USER = {"role": "user", "content": "x"}


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    """The error object, after checking that it has OpenAI's shape and is all there is."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert isinstance(body["error"]["message"], str)
    assert isinstance(body["error"]["type"], str)
    error: dict[str, Any] = body["error"]
    return error


CHAT_FIELDS = [
    ({"messages": []}, "messages", "invalid_value"),
    ({"messages": "hi"}, "messages", "invalid_value"),
    ({"messages": ["hi"]}, "messages[0]", "invalid_value"),
    ({"messages": None}, "messages", "invalid_value"),
    ({"messages": [{**USER, "role": "wizard"}]}, "messages[0].role", "invalid_value"),
    ({"messages": [USER, {"role": "user"}]}, "messages[1].content", "missing_required_parameter"),
    ({"messages": [{**USER, "content": 5}]}, "messages[0].content", "invalid_value"),
    ({"messages": [{**USER, "contnt": 5}]}, "messages[0].contnt", "unknown_parameter"),
    (
        {"messages": [{**USER, "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages[0].content[0].type",
        "unsupported_parameter",
    ),
    (
        {"messages": [{"role": "tool", "content": "x"}]},
        "messages[0].tool_call_id",
        "missing_required_parameter",
    ),
    ({"model": 5}, "model", "invalid_value"),
    ({"model": ""}, "model", "invalid_value"),
    ({"max_tokens": 0}, "max_tokens", "invalid_value"),
    ({"max_tokens": -1}, "max_tokens", "invalid_value"),
    ({"max_tokens": 1.5}, "max_tokens", "invalid_value"),
    ({"max_tokens": "5"}, "max_tokens", "invalid_value"),
    ({"max_tokens": True}, "max_tokens", "invalid_value"),
    ({"max_tokens": 10**30}, "max_tokens", "invalid_value"),
    ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens", "invalid_combination"),
    ({"temperature": 2.01}, "temperature", "invalid_value"),
    ({"temperature": -0.01}, "temperature", "invalid_value"),
    ({"temperature": "hot"}, "temperature", "invalid_value"),
    ({"top_p": 1.01}, "top_p", "invalid_value"),
    ({"top_k": -2}, "top_k", "invalid_value"),
    ({"min_p": 2}, "min_p", "invalid_value"),
    ({"min_tokens": 62}, "min_tokens", "invalid_value"),
    ({"presence_penalty": 2.1}, "presence_penalty", "invalid_value"),
    ({"frequency_penalty": -2.1}, "frequency_penalty", "invalid_value"),
    ({"seed": 2**63}, "seed", "invalid_value"),
    ({"stop": ""}, "stop", "invalid_value"),
    ({"stop": ["a", ""]}, "stop[1]", "invalid_value"),
    ({"stop": ["a"] * 5}, "stop", "invalid_value"),
    ({"stop": ["a"] * 1000}, "stop", "invalid_value"),
    ({"stop_token_ids": [-1]}, "stop_token_ids[0]", "invalid_value"),
    ({"n": 0}, "n", "invalid_value"),
    ({"n": 9}, "n", "invalid_value"),
    ({"n": 16384}, "n", "invalid_value"),
    ({"n": 8, "max_tokens": 51}, "n", "invalid_value"),  # the cache holds 400 tokens
    ({"logprobs": 5}, "logprobs", "invalid_value"),
    ({"top_logprobs": 2}, "top_logprobs", "invalid_combination"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
    ({"stream": "yes"}, "stream", "invalid_value"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_combination"),
    (
        {"stream": True, "stream_options": {"usage": True}},
        "stream_options.usage",
        "unknown_parameter",
    ),
    ({"metadata": {"a": 1}}, "metadata.a", "invalid_value"),
    ({"temprature": 1}, "temprature", "unknown_parameter"),
    ({"logit_bias": {"5": 101}}, "logit_bias.5", "invalid_value"),
    ({"logit_bias": {"100000": 1}}, "logit_bias", "invalid_value"),
    ({"repetition_penalty": 0}, "repetition_penalty", "invalid_value"),
    ({"store": True}, "store", "unsupported_parameter"),
    ({"use_beam_search": True}, "use_beam_search", "unsupported_parameter"),
]


@pytest.mark.parametrize(("fields", "param", "code"), CHAT_FIELDS)
async def test_a_bad_chat_field_is_named(
    web: httpx.AsyncClient,
    engine: FakeEngine,
    fields: dict[str, Any],
    param: str,
    code: str,
) -> None:
    error = error_of(await web.post(CHAT, json={**HELLO, **fields}), 400)
    assert (error["param"], error["code"]) == (param, code)
    assert error["type"] == "invalid_request_error"
    assert not engine.requests


TEXT_FIELDS = [
    ({"prompt": []}, "prompt", "invalid_value"),
    ({"prompt": ""}, "prompt", "invalid_value"),
    ({"prompt": [[]]}, "prompt[0]", "invalid_value"),
    ({"prompt": [1, "a"]}, "prompt[1]", "invalid_value"),
    ({"prompt": [1, 100]}, "prompt", "invalid_value"),
    ({"prompt": ["a"] * 65}, "prompt", "invalid_value"),
    ({"prompt": ["a"] * 30, "n": 3}, "n", "invalid_value"),
    ({"n": 8, "max_tokens": 51}, "n", "invalid_value"),
    ({"prompt": None}, "prompt", "invalid_value"),
    ({"max_tokens": 0}, "max_tokens", "invalid_combination"),
    ({"max_tokens": 0, "echo": False}, "max_tokens", "invalid_combination"),
    ({"prompt_logprobs": 1}, "prompt_logprobs", "unsupported_parameter"),
    ({"logprobs": -1}, "logprobs", "invalid_value"),
    ({"suffix": "x"}, "suffix", "unsupported_parameter"),
    ({"best_of": 2}, "best_of", "unsupported_parameter"),
    ({"logprobs": True}, "logprobs", "invalid_value"),
    ({"messages": []}, "messages", "unknown_parameter"),
]


@pytest.mark.parametrize(("fields", "param", "code"), TEXT_FIELDS)
async def test_a_bad_completion_field_is_named(
    web: httpx.AsyncClient,
    engine: FakeEngine,
    fields: dict[str, Any],
    param: str,
    code: str,
) -> None:
    error = error_of(await web.post(TEXT, json={**PLAIN, **fields}), 400)
    assert (error["param"], error["code"]) == (param, code)
    assert not engine.requests


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [], "tool_choice": "none", "parallel_tool_calls": True, "functions": None},
        {"response_format": {"type": "text"}, "logit_bias": {}, "modalities": ["text"]},
        {"store": False, "service_tier": "auto", "reasoning_effort": None, "verbosity": "medium"},
        {"repetition_penalty": 1, "use_beam_search": False, "skip_special_tokens": True},
        {"prompt_cache_key": "k", "safety_identifier": "s", "metadata": {"k": "v"}},
        {"messages": [{"role": "assistant", "content": "x", "refusal": None, "annotations": []}]},
        {"messages": [{"role": "developer", "content": [{"type": "text", "text": "x"}]}]},
    ],
)
async def test_what_changes_nothing_is_accepted(
    web: httpx.AsyncClient, fields: dict[str, Any]
) -> None:
    assert (await web.post(CHAT, json={**HELLO, **fields})).status_code == 200


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"{", "invalid_json"),
        (b"", "missing_required_parameter"),
        (b"[]", "invalid_value"),
        (b'"text"', "invalid_value"),
        (b"null", "invalid_value"),
        (b"{'model': 1}", "invalid_json"),
        (b'{"model": "\xff\xfe"}', None),
        (b"\xff\xfe\x00", None),
        (b"[" * 100_000, None),
        (b'{"model": ' + b"9" * 5000 + b"}", None),
    ],
)
async def test_a_body_that_is_no_json_object(
    web: httpx.AsyncClient, content: bytes, code: str | None
) -> None:
    headers = {"content-type": "application/json"}
    error = error_of(await web.post(CHAT, content=content, headers=headers), 400)
    if code is not None:
        assert error["code"] == code
    assert "traceback" not in error["message"].lower()


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
async def test_numbers_that_are_none(web: httpx.AsyncClient, number: str) -> None:
    content = json.dumps(HELLO)[:-1] + f', "temperature": {number}}}'
    headers = {"content-type": "application/json"}
    error = error_of(await web.post(CHAT, content=content, headers=headers), 400)
    assert error["param"] == "temperature"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": "\ud800"}, "model"),
        ({"messages": [{"role": "user", "content": "a\udfffb"}]}, "messages[0].content"),
        ({"stop": "\ud800"}, "stop"),
        ({"user": "\ud800"}, "user"),
        ({"\ud800": 1}, "?"),
    ],
)
async def test_half_a_surrogate_pair_is_refused_and_can_be_said(
    web: httpx.AsyncClient, fields: dict[str, Any], param: str
) -> None:
    headers = {"content-type": "application/json"}
    content = json.dumps({**HELLO, **fields})  # as an escape, which JSON allows
    error = error_of(await web.post(CHAT, content=content, headers=headers), 400)
    assert error["param"] == param


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", None])
async def test_only_json_is_read(web: httpx.AsyncClient, content_type: str | None) -> None:
    headers = {"content-type": content_type} if content_type else {}
    error = error_of(await web.post(CHAT, content=json.dumps(HELLO), headers=headers), 400)
    assert error["code"] == "unsupported_content_type"


@pytest.mark.parametrize(
    "model", ["nobody", "nobody@3", "tiny-base:nobody", "a/b", "Ünknown", "x" * 500]
)
async def test_an_unknown_model_is_404_and_named(web: httpx.AsyncClient, model: str) -> None:
    error = error_of(await web.post(CHAT, json={**HELLO, "model": model}), 404)
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert model[:50] in error["message"]


async def test_an_overlong_prompt_gets_both_numbers(
    web: httpx.AsyncClient, engine: FakeEngine
) -> None:
    for fields in (
        {"messages": [{"role": "user", "content": "x" * 70}]},
        {"messages": [{"role": "user", "content": "x" * 9_000}]},
        {"max_tokens": 62},
    ):
        error = error_of(await web.post(CHAT, json={**HELLO, **fields}), 400)
        assert error["code"] == "context_length_exceeded"
        assert "64" in error["message"]
    assert "3 tokens" in error["message"]
    assert "62" in error["message"]
    error = error_of(await web.post(TEXT, json={**PLAIN, "prompt": "x" * 50}), 400)
    assert error["code"] == "context_length_exceeded"
    assert (await web.post(CHAT, json={**HELLO, "max_tokens": 61})).status_code == 200
    assert len(engine.requests) == 1


async def test_what_cannot_fit_is_refused_without_being_tokenised(
    web: httpx.AsyncClient, fake_server: Server
) -> None:
    renderer: Any = fake_server.renderer
    for content in ("x" * 2_000_000, "你" * 600_000):
        body = {**HELLO, "messages": [{"role": "user", "content": content}]}
        error = error_of(await web.post(CHAT, json=body), 400)
        assert error["code"] == "context_length_exceeded"
        assert "at least" in error["message"]
    assert renderer.num_rendered == 0
    error = error_of(await web.post(TEXT, json={**PLAIN, "prompt": "x" * 2_000_000}), 400)
    assert "at least" in error["message"]


async def test_too_large_a_body_is_413_announced_or_not(
    web: httpx.AsyncClient, fake_server: Server
) -> None:
    limit = fake_server.settings.max_body_bytes
    error = error_of(await web.post(CHAT, content=b"x" * (limit + 1)), 413)
    assert str(limit) in error["message"]

    async def unannounced() -> Any:
        for _ in range(limit // 65536 + 1):
            yield b" " * 65536

    headers = {"content-type": "application/json"}
    error = error_of(await web.post(CHAT, content=unannounced(), headers=headers), 413)
    assert error["code"] == "request_too_large"


async def test_unknown_urls_and_methods(web: httpx.AsyncClient) -> None:
    assert error_of(await web.get("/v1/nothing"), 404)["code"] == "unknown_url"
    error = error_of(await web.get(CHAT), 405)
    assert error["code"] == "method_not_allowed"


async def test_overload_is_429_with_a_time_to_wait(
    web: httpx.AsyncClient, engine: FakeEngine, fake_server: Server
) -> None:
    engine.script.refusal = EngineOverloaded("80 requests are waiting", retry_after_s=3.2)
    for is_stream in (False, True):
        response = await web.post(CHAT, json={**HELLO, "stream": is_stream})
        assert error_of(response, 429)["type"] == "rate_limit_error"
        assert response.headers["retry-after"] == "4"
    report = fake_server.telemetry.report()["adapters"]["base"]
    assert (report["requests"], report["rejected"]) == (0, 2)


async def test_a_stopping_engine_is_503(web: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.script.refusal = EngineClosed("the engine is shutting down")
    response = await web.post(CHAT, json=HELLO)
    assert error_of(response, 503)["code"] == "engine_closed"
    assert response.headers["retry-after"]


async def test_a_draining_server_takes_nothing_new(
    web: httpx.AsyncClient, fake_server: Server, engine: FakeEngine
) -> None:
    fake_server.lifecycle.is_draining = True
    assert error_of(await web.post(CHAT, json=HELLO), 503)["code"] == "engine_closed"
    assert not engine.requests


def test_our_own_mistakes_say_nothing_but_where_to_look(app: FastAPI, engine: FakeEngine) -> None:
    engine.script.refusal = ZeroDivisionError("secret detail")
    with serving(app) as live, httpx.Client(base_url=live.url) as client:
        response = client.post(CHAT, json=HELLO, headers={"x-request-id": "my-id.1"})
        error = error_of(response, 500)
        assert "secret" not in response.text
        assert "my-id.1" in error["message"]
        assert response.headers["x-request-id"] == "my-id.1"


async def test_an_adapter_that_cannot_be_loaded_fails_its_own_requests_only(
    web: httpx.AsyncClient, fake_server: Server, publish: Any
) -> None:
    version = publish("shop")
    adapters = fake_server.adapters
    assert isinstance(adapters, FakeAdapters)
    adapters.failure = OSError("disk")
    assert error_of(await web.post(CHAT, json={**HELLO, "model": "shop"}), 500)
    assert (await web.post(CHAT, json=HELLO)).status_code == 200
    stats = fake_server.telemetry.report()["adapters"]
    assert (stats[version.id]["requests"], stats[version.id]["errors"]) == (1, 1)
    assert stats["base"]["errors"] == 0


async def test_an_adapter_removed_meanwhile_is_no_failure_of_its_own(
    web: httpx.AsyncClient, fake_server: Server, publish: Any
) -> None:
    version = publish("shop")
    assert isinstance(fake_server.adapters, FakeAdapters)
    fake_server.adapters.failure = NotFound(f"{version.id} has been removed.")
    error_of(await web.post(CHAT, json={**HELLO, "model": "shop"}), 404)
    assert version.id not in fake_server.telemetry.report()["adapters"]
