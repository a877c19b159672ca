"""/v1/responses: what it cannot honour is refused by name, in OpenAI's shape."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from server.state import Server
from tests.server.fakes import FakeEngine
from tests.server.responses import BASE, TOOL, URL, NoGrammars, understand

CALL = {"type": "function_call", "call_id": "c1", "name": "find_order", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "far"}
USER = {"role": "user", "content": "hi"}


async def ask(web: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    return await web.post(URL, json={"model": BASE, "input": "hi", **fields})


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"background": True}, "background", "unsupported_parameter"),
    ({"conversation": "conv_1"}, "conversation", "unsupported_parameter"),
    ({"prompt": {"id": "pmpt_1"}}, "prompt", "unsupported_parameter"),
    ({"truncation": "auto"}, "truncation", "unsupported_parameter"),
    (
        {"context_management": [{"type": "compaction"}]},
        "context_management",
        "unsupported_parameter",
    ),
    ({"moderation": {"model": "m"}}, "moderation", "unsupported_parameter"),
    ({"service_tier": "flex"}, "service_tier", "unsupported_parameter"),
    ({"prompt_cache_options": {"prewarm": True}}, "prompt_cache_options", "unsupported_parameter"),
    ({"n": 2}, "n", "unsupported_parameter"),
    ({"text": {"verbosity": "low"}}, "text.verbosity", "unsupported_parameter"),
    ({"reasoning": {"summary": "detailed"}}, "reasoning.summary", "unsupported_parameter"),
    ({"reasoning": {"effort": "high"}}, "reasoning.effort", "unsupported_parameter"),
    ({"reasoning": {"effort": "vast"}}, "reasoning.effort", "invalid_value"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type", "unsupported_parameter"),
    (
        {"tools": [{**TOOL, "defer_loading": True}]},
        "tools[0].defer_loading",
        "unsupported_parameter",
    ),
    ({"tools": [{**TOOL, "name": "a b"}]}, "tools[0].name", "invalid_value"),
    ({"tools": [TOOL]}, "tools", "unsupported_parameter"),  # this base's template shows none
    ({"tool_choice": "required"}, "tool_choice", "invalid_combination"),
    ({"tool_choice": {"type": "file_search"}}, "tool_choice.type", "unsupported_parameter"),
    (
        {"tools": [TOOL], "tool_choice": {"type": "function", "name": "other"}},
        "tool_choice.name",
        "invalid_value",
    ),
    ({"text": {"format": {"type": "grammar"}}}, "text.format.type", "unsupported_parameter"),
    (
        {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"$ref": "http://x"}}}},
        "text.format.schema",
        "invalid_schema",
    ),
    ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type", "unsupported_parameter"),
    (
        {"input": [{**USER, "content": [{"type": "input_image", "image_url": "x"}]}]},
        "input[0].content[0].type",
        "unsupported_parameter",
    ),
    ({"input": [{**USER, "role": "critic"}]}, "input[0].role", "invalid_value"),
    ({"input": []}, "input", "invalid_value"),
    ({"input": [7]}, "input[0]", "invalid_value"),
    ({"input": None}, "input", "invalid_value"),
    (
        {"input": [{"type": "reasoning", "encrypted_content": "gAAA"}]},
        "input[0].encrypted_content",
        "unsupported_parameter",
    ),
    (
        {"input": [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "x"}]}]},
        "input[0].summary",
        "unsupported_parameter",
    ),
    ({"input": [USER, OUTPUT]}, "input[1]", "invalid_value"),
    ({"input": [USER, CALL]}, "input[1]", "invalid_value"),
    ({"input": [CALL, CALL, OUTPUT]}, "input[0]", "invalid_value"),
    ({"input": [CALL, USER, OUTPUT]}, "input[0]", "invalid_value"),
    ({"input": "hi" * 50}, "input", "context_length_exceeded"),
    ({"max_output_tokens": 100}, "input", "context_length_exceeded"),
    ({"max_output_tokens": 0}, "max_output_tokens", "invalid_value"),
    ({"max_tokens": 5}, "max_tokens", "unknown_parameter"),
    ({"messages": []}, "messages", "unknown_parameter"),
    ({"include": ["everything"]}, "include[0]", "invalid_value"),
    ({"top_logprobs": 2}, "top_logprobs", "invalid_combination"),
    ({"stream_options": {}}, "stream_options", "invalid_combination"),
    ({"temperature": 3}, "temperature", "invalid_value"),
    ({"previous_response_id": "resp_0"}, "previous_response_id", "previous_response_not_found"),
    ({"min_tokens": 9, "max_output_tokens": 5}, "min_tokens", "invalid_value"),
]


@pytest.mark.parametrize(("fields", "param", "code"), REFUSED, ids=lambda value: str(value)[:60])
async def test_what_would_change_the_answer_is_refused_by_name(
    web: httpx.AsyncClient, fake_server: Server, fields: dict[str, Any], param: str, code: str
) -> None:
    fake_server.__dict__["tool_format"] = None
    answer = await ask(web, **fields)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == (param, code), error
    assert error["type"] == "invalid_request_error"
    for word in ("messages[", "max_tokens asks", "response_format", "reasoning_effort"):
        assert word not in error["message"], "it speaks of another API"


async def test_text_that_is_none_is_refused(web: httpx.AsyncClient) -> None:
    for text in ('{"input": "\\ud800"', '{"input": [{"role": "user", "content": "\\ud800"}]'):
        body = f'{text}, "model": "{BASE}"}}'
        answer = await web.post(URL, content=body, headers={"content-type": "application/json"})
        assert answer.json()["error"]["param"] == ("input[0].content" if "[" in text else "input")


async def test_an_unknown_model_is_not_found(web: httpx.AsyncClient) -> None:
    answer = await ask(web, model="nobody")
    assert (answer.status_code, answer.json()["error"]["param"]) == (404, "model")


NEUTRAL: list[dict[str, Any]] = [
    {"background": False, "truncation": "disabled", "service_tier": "auto", "n": 1},
    {"conversation": None, "prompt": None, "context_management": [], "max_tool_calls": 3},
    {"text": {"format": {"type": "text"}, "verbosity": "medium"}},
    {"reasoning": {"effort": None, "summary": "auto"}},
    {"include": ["reasoning.encrypted_content", "web_search_call.results"]},
    {"prompt_cache_key": "k", "prompt_cache_retention": "24h", "safety_identifier": "s"},
    {"tools": [], "tool_choice": "none", "parallel_tool_calls": False, "top_logprobs": 0},
    {"metadata": {"a": "b"}, "user": "u", "store": True},
]


@pytest.mark.parametrize("fields", NEUTRAL, ids=str)
async def test_what_changes_nothing_passes(web: httpx.AsyncClient, fields: dict[str, Any]) -> None:
    answer = await ask(web, **fields)
    assert answer.status_code == 200, answer.text
    assert answer.json()["output"][0]["content"][0]["text"] == "Hello, world!"


async def test_every_sampling_parameter_reaches_the_engine(
    web: httpx.AsyncClient, engine: FakeEngine
) -> None:
    given = {
        "temperature": 0.25,
        "top_p": 0.5,
        "top_k": 7,
        "min_p": 0.125,
        "min_tokens": 2,
        "ignore_eos": True,
        "seed": -9,
        "presence_penalty": -1.5,
        "frequency_penalty": 1.5,
        "repetition_penalty": 1.25,
    }
    more = {"max_output_tokens": 5, "stop": ["a"], "stop_token_ids": [5], "logit_bias": {"7": 1.5}}
    order = {"priority": 3, "cache_salt": "s"}
    answer = await ask(web, **given, **more, **order)
    assert answer.status_code == 200, answer.text
    (request,) = engine.requests
    sampling = request.sampling
    for name in given:
        assert getattr(sampling, name) == given[name], name
    assert (sampling.max_tokens, sampling.stop, sampling.logit_bias) == (5, ("a",), ((7, 1.5),))
    assert sampling.stop_token_ids == {5}
    assert (request.priority, request.cache_salt) == (3, "s")


async def test_everything_that_shapes_the_answer_reaches_the_chat(
    web: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Server, "grammars", NoGrammars())
    told = understand(monkeypatch)
    allowed = {"type": "allowed_tools", "mode": "required"}
    name = {"type": "function", "name": "find_order"}
    form = {"type": "json_schema", "name": "x", "schema": {"type": "object"}, "strict": True}
    answer = await ask(
        web,
        tools=[TOOL],
        tool_choice={**allowed, "tools": [name]},
        parallel_tool_calls=False,
        reasoning={"effort": "none"},
        chat_template_kwargs={"a": 1},
        text={"format": form},
        user="u",
    )
    (chat,) = told.chats
    assert answer.status_code == 200, answer.text
    function = chat.tools[0].function
    assert (function.name, function.strict) == ("find_order", False)
    assert function.parameters == TOOL["parameters"]
    assert chat.tool_choice.allowed_tools.tools[0].function.name == "find_order"
    assert (chat.parallel_tool_calls, chat.reasoning_effort) == (False, "none")
    assert (chat.chat_template_kwargs, chat.user) == ({"a": 1}, "u")
    assert chat.response_format.json_schema.schema_ == {"type": "object"}
    shown = answer.json()
    assert shown["tools"] == [TOOL]
    assert shown["tool_choice"] == {**allowed, "tools": [name]}
    assert shown["text"]["format"]["schema"] == {"type": "object"}


async def test_counting_refuses_as_answering_does(web: httpx.AsyncClient) -> None:
    count = f"{URL}/input_tokens"
    nothing = (await web.post(count, json={})).json()["error"]
    assert (nothing["param"], nothing["code"]) == ("input", "missing_required_parameter")
    for fields, param in (
        ({"input": "hi", "personality": "friendly"}, "personality"),
        ({"input": "hi" * 50}, "input"),
        ({"input": "hi", "model": "nobody"}, "model"),
    ):
        assert (await web.post(count, json=fields)).json()["error"]["param"] == param
    assert (await web.post(count, json={"input": "hi"})).json()["input_tokens"] == 3


async def test_a_stored_response_cannot_be_streamed_again(web: httpx.AsyncClient) -> None:
    made = (await ask(web)).json()["id"]
    error = (await web.get(f"{URL}/{made}", params={"stream": "true"})).json()["error"]
    assert (error["param"], error["code"]) == ("stream", "unsupported_parameter")
    bad = (await web.get(f"{URL}/{made}/input_items?after=msg_0")).json()["error"]
    assert (bad["param"], bad["code"]) == ("after", "invalid_value")
