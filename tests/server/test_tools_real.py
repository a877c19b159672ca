"""Calls that a real model is made to write: always whole, of an offered function, by its schema."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from openai import OpenAI

from artifacts.home import Home
from server.app import create_app
from server.assembly import build_server
from server.settings import Settings
from tests.server.conftest import serving

BASE = "loraloop-embedded"
PARAMETERS: dict[str, dict[str, Any]] = {
    "book": {
        "type": "object",
        "properties": {
            "city": {"enum": ["Zürich", "上海", 'say "hi"']},
            "nights": {"type": "integer", "minimum": 1, "maximum": 30},
            "guests": {"type": "array", "items": {"$ref": "#/$defs/guest"}, "maxItems": 2},
        },
        "required": ["city", "nights"],
        "additionalProperties": False,
        "$defs": {"guest": {"type": "string", "maxLength": 6}},
    },
    "rate": {
        "type": "object",
        "properties": {"score": {"type": "number", "minimum": 0, "maximum": 5}},
        "required": ["score"],
        "additionalProperties": False,
    },
}
EMPTY: dict[str, Any] = {"type": "object", "maxProperties": 0}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "book", "parameters": PARAMETERS["book"]}},
    {"type": "function", "function": {"name": "rate", "parameters": PARAMETERS["rate"]}},
    {"type": "function", "function": {"name": "stop.it-now"}},
]
NAMED = {"type": "function", "function": {"name": "rate"}}
ALLOWED = {"mode": "required", "tools": [TOOLS[2], NAMED]}
CHOICES: list[tuple[Any, set[str]]] = [
    ("required", {"book", "rate", "stop.it-now"}),
    (NAMED, {"rate"}),
    ({"type": "allowed_tools", "allowed_tools": ALLOWED}, {"rate", "stop.it-now"}),
]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    home = tmp_path_factory.mktemp("tools") / "home"
    given: dict[str, Any] = {"dtype": "float32", "kv_cache_tokens": 16384, "num_threads": 1}
    server = build_server(Settings(home=home, **given), Home.open(home), [])
    with (
        serving(create_app(server)) as live,
        OpenAI(base_url=live.url + "/v1", api_key="none", max_retries=0) as client,
    ):
        yield client
    server.database.close()


def ask(client: OpenAI, **fields: Any) -> Any:
    return client.chat.completions.create(**_body(fields))


def _body(fields: dict[str, Any]) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Book two nights in Zürich."}]
    body = {"model": BASE, "messages": messages, "tools": TOOLS, "temperature": 1}
    return {**body, "max_tokens": 300, **fields}


def check(calls: Any, names: set[str]) -> None:
    for call in calls:
        assert call.type == "function"
        assert call.function.name in names
        schema = PARAMETERS.get(call.function.name, EMPTY)
        jsonschema.validate(json.loads(call.function.arguments), schema)


@pytest.mark.parametrize(("choice", "names"), CHOICES)
def test_forced_calls_are_always_valid(client: OpenAI, choice: Any, names: set[str]) -> None:
    fields = {"tool_choice": choice, "n": 8, "seed": 100, "reasoning_effort": "none"}
    for temperature, parallel in ((1, True), (2, False)):
        given = {**fields, "temperature": temperature, "parallel_tool_calls": parallel}
        for answer in ask(client, **given, max_tokens=200).choices:
            calls = answer.message.tool_calls
            assert calls
            assert parallel or len(calls) == 1
            assert answer.message.content is None
            if answer.finish_reason == "length":
                calls.pop()  # cut off, as the word says
            else:
                assert answer.finish_reason == ("stop" if choice is NAMED else "tool_calls")
            check(calls, names)


def test_a_forced_call_comes_behind_thoughts_too(client: OpenAI) -> None:
    fields = {"tool_choice": "required", "n": 4, "seed": 0, "parallel_tool_calls": False}
    choices = ask(client, **fields, extra_body={"thinking_token_budget": 40}).choices
    assert any(choice.message.reasoning_content for choice in choices)
    for choice in choices:
        assert choice.message.content is None
        check(choice.message.tool_calls, {"book", "rate", "stop.it-now"})
        assert len(choice.message.tool_calls) == 1


@pytest.mark.parametrize("choice", ["auto", "required", NAMED, "none"])
def test_a_stream_says_what_the_whole_answer_says(client: OpenAI, choice: Any) -> None:
    for seed in range(2):
        fields = {"tool_choice": choice, "seed": seed, "max_tokens": 120}
        whole = ask(client, **fields).choices[0]
        with client.chat.completions.stream(**_body(fields)) as stream:
            streamed = stream.get_final_completion() if _ends(whole) else None
            if streamed is None:
                continue
        message, other = whole.message, streamed.choices[0].message
        assert (message.content or None) == (other.content or None)
        assert _calls(message) == _calls(other)
        assert whole.finish_reason == streamed.choices[0].finish_reason


def _ends(choice: Any) -> bool:
    """The client's helper raises for answers that were cut off."""
    return bool(choice.finish_reason != "length")


def _calls(message: Any) -> list[tuple[str, str]]:
    calls = message.tool_calls or []
    return [(call.function.name, call.function.arguments) for call in calls]


def test_strict_functions_follow_their_schema_whenever_they_are_called(client: OpenAI) -> None:
    """``logit_bias`` makes the model call of its own will."""
    strict = [{**tool, "function": {**tool["function"], "strict": True}} for tool in TOOLS]
    mark = {"11": 60}  # <tool_call>
    body: dict[str, Any] = {"tools": strict, "logit_bias": mark, "parallel_tool_calls": False}
    choices = ask(client, **body, n=4, seed=5, reasoning_effort="none").choices
    for choice in choices:
        assert choice.message.tool_calls
        check(choice.message.tool_calls, {"book", "rate", "stop.it-now"})


def test_an_answer_is_a_call_or_has_its_form(client: OpenAI) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "r", "schema": PARAMETERS["rate"]}}
    fields: dict[str, Any] = {"response_format": form, "n": 4, "seed": 3, "max_tokens": 100}
    fields["reasoning_effort"] = "none"
    for bias in ({"11": -100}, {"11": 60}):
        for choice in ask(client, **fields, logit_bias=bias).choices:
            if choice.finish_reason == "length":
                continue
            if choice.message.tool_calls:
                assert bias["11"] > 0
                assert choice.message.content is None
            else:
                assert bias["11"] < 0
                jsonschema.validate(json.loads(choice.message.content), PARAMETERS["rate"])
