"""Functions in chats over HTTP: what reaches the model, what comes back, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import httpx
import pytest

from artifacts.base import EMBEDDED_BASE, open_tokenizer
from artifacts.chat import ChatRenderer
from server.state import Server
from tests.server.fakes import FIRST_ID, FakeBase, FakeEngine
from tests.server.tool_templates import UNKNOWN, tokenizer_with

URL = "/v1/chat/completions"
USER = {"role": "user", "content": "q"}
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": CITY}}
NOW = {"type": "function", "function": {"name": "now", "description": "d", "strict": True}}
NAMED = {"type": "function", "function": {"name": "now"}}
CALL = {"id": "c1", "type": "function", "function": {"name": "now", "arguments": "{}"}}
OTHER = CALL | {"id": "c2"}
RESULT = {"role": "tool", "content": "noon", "tool_call_id": "c1"}
HELLO: dict[str, Any] = {"model": "tiny-base", "messages": [USER], "tools": [WEATHER, NOW]}
SPOKEN: tuple[str, ...] = (
    "Let me ",
    "see.\n",
    "<tool_call>",
    '{"name": "weat',
    'her", "arguments": {"city"',
    ': "',
)
SPOKEN += ('Zürich"}}', "</tool_call>", '<tool_call>{"name": "now", "arguments": {}}</tool_call>')

Use = Callable[[Any], ChatRenderer]


@pytest.fixture
def use(fake_server: Server, engine: FakeEngine) -> Use:
    """Puts a tokenizer and its template under the fake engine."""

    def put(tokenizer: Any) -> ChatRenderer:
        fake_server.base = cast(Any, replace(FakeBase(), tokenizer=tokenizer))
        fake_server.renderer = ChatRenderer(tokenizer)
        engine.vocab_size, engine.max_model_len = 6144, 2048
        return fake_server.renderer

    return put


@pytest.fixture
def renderer(use: Use) -> ChatRenderer:
    """The embedded base's."""
    return use(open_tokenizer(EMBEDDED_BASE))


def say(engine: FakeEngine, *texts: str) -> None:
    engine.script.texts = texts
    engine.script.tokens = (FIRST_ID,) * len(texts)


async def ask(web: httpx.AsyncClient, **fields: Any) -> Any:
    response = await web.post(URL, json={**HELLO, **fields})
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]


async def deltas_of(web: httpx.AsyncClient, **fields: Any) -> tuple[list[Any], str]:
    """What a stream adds, and its finish_reason."""
    response = await web.post(URL, json={**HELLO, "stream": True, **fields})
    events = [json.loads(line[6:]) for line in response.text.split("\n\n")[:-2]]
    choices = [event["choices"][0] for event in events]
    return [choice["delta"] for choice in choices[1:-1]], choices[-1]["finish_reason"]


def names_and_arguments(message: Any) -> list[tuple[str, str]]:
    functions = [call["function"] for call in message["tool_calls"]]
    return [(function["name"], function["arguments"]) for function in functions]


@pytest.mark.parametrize("choice", ["auto", "none", "required", NAMED])
async def test_the_model_sees_the_functions_whatever_it_may_call(
    web: httpx.AsyncClient, engine: FakeEngine, renderer: ChatRenderer, choice: Any
) -> None:
    await ask(web, tool_choice=choice)
    shown = [WEATHER, {**NOW, "function": {"name": "now", "description": "d"}}]  # not strict
    assert list(engine.requests[0].prompt_ids) == renderer.render_prompt([USER], tools=shown)
    assert engine.requests[0].sampling.grammar is not None


async def test_calls_in_a_whole_answer(
    web: httpx.AsyncClient, engine: FakeEngine, renderer: ChatRenderer
) -> None:
    say(engine, *SPOKEN)
    choice = await ask(web)
    message = choice["message"]
    assert message["content"] == "Let me see."
    assert names_and_arguments(message) == [("weather", '{"city": "Zürich"}'), ("now", "{}")]
    ids = [call["id"] for call in message["tool_calls"]]
    assert all(id_.startswith("call_") for id_ in ids)
    assert len(set(ids)) == 2
    assert choice["finish_reason"] == "tool_calls"


async def test_calls_in_a_stream(
    web: httpx.AsyncClient, engine: FakeEngine, renderer: ChatRenderer
) -> None:
    say(engine, *SPOKEN)
    deltas, word = await deltas_of(web)
    assert word == "tool_calls"
    assert "".join(delta.get("content", "") for delta in deltas) == "Let me see."
    assert "<" not in json.dumps(deltas)
    calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
    begun = [call for call in calls if "id" in call]
    assert [call["index"] for call in begun] == [0, 1]
    assert [call["type"] for call in begun] == ["function"] * 2
    assert [call["function"]["name"] for call in begun] == ["weather", "now"]
    parts = [call["function"]["arguments"] for call in calls if call["index"] == 0]
    assert parts == ["", '{"city"', ': "', 'Zürich"}']


async def test_content_is_null_where_there_are_only_calls(
    web: httpx.AsyncClient, engine: FakeEngine, renderer: ChatRenderer
) -> None:
    say(engine, "\n", *SPOKEN[2:8])
    choice = await ask(web)
    assert choice["message"]["content"] is None
    deltas, _ = await deltas_of(web)
    assert not any("content" in delta for delta in deltas)


@pytest.mark.parametrize(
    ("choice", "word"),
    [("auto", "tool_calls"), ("required", "tool_calls"), (NAMED, "stop"), (None, "tool_calls")],
)
async def test_how_an_answer_with_calls_ends(
    web: httpx.AsyncClient, engine: FakeEngine, renderer: ChatRenderer, choice: Any, word: str
) -> None:
    say(engine, SPOKEN[-1])
    assert (await ask(web, tool_choice=choice))["finish_reason"] == word
    assert (await ask(web, tool_choice=choice, max_tokens=1))["finish_reason"] == "length"


async def test_without_leave_to_call_a_mark_is_text(
    web: httpx.AsyncClient, engine: FakeEngine, renderer: ChatRenderer
) -> None:
    say(engine, SPOKEN[-1])
    choice = await ask(web, tool_choice="none")
    assert choice["message"]["content"] == SPOKEN[-1]
    assert "tool_calls" not in choice["message"]
    assert choice["finish_reason"] == "stop"


async def test_each_choice_has_calls_of_its_own(
    web: httpx.AsyncClient, engine: FakeEngine, renderer: ChatRenderer
) -> None:
    say(engine, SPOKEN[-1])
    response = await web.post(URL, json={**HELLO, "n": 2, "logprobs": True})
    one, two = response.json()["choices"]
    assert names_and_arguments(one["message"]) == names_and_arguments(two["message"])
    assert one["message"]["tool_calls"][0]["id"] != two["message"]["tool_calls"][0]["id"]
    assert len(one["logprobs"]["content"]) == 1  # calls are tokens too


async def test_a_call_and_its_result_go_back_to_the_model(
    web: httpx.AsyncClient, engine: FakeEngine, renderer: ChatRenderer
) -> None:
    echoed = {**CALL, "function": {**CALL["function"], "parsed_arguments": {}}}  # type: ignore[dict-item]
    called = {"role": "assistant", "content": None, "parsed": None, "tool_calls": [echoed]}
    messages = [USER, called, RESULT]
    await ask(web, messages=messages)
    plain: list[dict[str, Any]] = [USER, {"role": "assistant", "tool_calls": [CALL]}, RESULT]
    shown = [WEATHER, {**NOW, "function": {"name": "now", "description": "d"}}]
    assert list(engine.requests[0].prompt_ids) == renderer.render_prompt(plain, tools=shown)


def called(*calls: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": list(calls)}


NO_ID = {key: value for key, value in CALL.items() if key != "id"}
UNKNOWN_NAME = {"type": "function", "function": {"name": "clock"}}
ALLOWED: dict[str, Any] = {"mode": "auto", "tools": [NAMED, UNKNOWN_NAME]}
BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"tools": [NOW, WEATHER, NOW]}, "tools[2].function.name", "invalid_value"),
    ({"tools": [{"type": "custom", "custom": {}}]}, "tools[0].type", "unsupported_parameter"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type", "unsupported_parameter"),
    ({"tool_choice": UNKNOWN_NAME}, "tool_choice.function.name", "invalid_value"),
    (
        {"tool_choice": {"type": "allowed_tools", "allowed_tools": ALLOWED}},
        "tool_choice.allowed_tools.tools[1].function.name",
        "invalid_value",
    ),
    ({"tools": None, "tool_choice": "auto"}, "tool_choice", "invalid_combination"),
    ({"tools": [], "tool_choice": NAMED}, "tool_choice", "invalid_combination"),
    ({"ignore_eos": True}, "ignore_eos", "invalid_combination"),
    ({"messages": [USER, RESULT]}, "messages[1].tool_call_id", "invalid_value"),
    (
        {"messages": [USER, called(CALL), RESULT, RESULT]},
        "messages[3].tool_call_id",
        "invalid_value",
    ),
    ({"messages": [USER, called(CALL), USER]}, "messages[1].tool_calls", "invalid_value"),
    ({"messages": [called(CALL), USER, RESULT]}, "messages[0].tool_calls", "invalid_value"),
    ({"messages": [USER, called(CALL)]}, "messages[1].tool_calls", "invalid_value"),
    ({"messages": [called(CALL, OTHER), RESULT]}, "messages[0].tool_calls", "invalid_value"),
    ({"messages": [called(CALL, CALL)]}, "messages[0].tool_calls[1].id", "invalid_value"),
    (
        {"messages": [called(NO_ID), RESULT]},
        "messages[0].tool_calls[0].id",
        "missing_required_parameter",
    ),
    (
        {"messages": [called(CALL), {"role": "tool", "content": "x"}]},
        "messages[1].tool_call_id",
        "missing_required_parameter",
    ),
    ({"messages": [{"role": "function", "content": "x"}]}, "messages[0].role", "invalid_value"),
    ({"messages": [{**USER, "name": "Ann"}]}, "messages[0]", "invalid_messages"),
    ({"functions": [NOW["function"]]}, "functions", "unsupported_parameter"),
    ({"function_call": {"name": "now"}}, "function_call", "unsupported_parameter"),
]


@pytest.mark.parametrize(("fields", "param", "code"), BAD)
async def test_what_cannot_be_is_refused_by_name(
    web: httpx.AsyncClient,
    engine: FakeEngine,
    renderer: ChatRenderer,
    fields: dict[str, Any],
    param: str,
    code: str,
) -> None:
    response = await web.post(URL, json={**HELLO, **fields})
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, param, code), error
    assert not engine.requests


@pytest.mark.parametrize(
    "template", [UNKNOWN, "{% for m in messages %}{{ m.content }}{% endfor %}"]
)
@pytest.mark.parametrize("choice", ["auto", "none"])
async def test_a_base_that_writes_no_known_calls_is_offered_none(
    web: httpx.AsyncClient, engine: FakeEngine, use: Use, template: str, choice: str
) -> None:
    use(tokenizer_with(template))
    response = await web.post(URL, json={**HELLO, "tool_choice": choice})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "tools")
    assert error["code"] == "unsupported_parameter"
    assert not engine.requests


async def test_a_speaker_is_named_where_the_template_names_it(
    web: httpx.AsyncClient, engine: FakeEngine, use: Use
) -> None:
    renderer = use(
        tokenizer_with("{% for m in messages %}{{ m.name }}: {{ m.content }}{% endfor %}")
    )
    messages = [{**USER, "name": "Ann"}, {"role": "user", "content": "r", "name": "Bob"}]
    await ask(web, messages=messages, tools=None)
    assert list(engine.requests[0].prompt_ids) == renderer.render_prompt(messages)


async def test_functions_count_among_what_has_to_fit(
    web: httpx.AsyncClient, renderer: ChatRenderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renderer, "render_prompt", None)  # it is not even rendered
    long = {"type": "function", "function": {"name": "now", "description": "x" * 2_000_000}}
    response = await web.post(URL, json={**HELLO, "tools": [long]})
    assert response.json()["error"]["code"] == "context_length_exceeded"
