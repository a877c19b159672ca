"""A base that thinks first, as R1's distills do: its template opens the thoughts in the prompt."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from artifacts.base import EMBEDDED_BASE
from artifacts.home import Home
from server.app import create_app
from server.assembly import build_server
from server.settings import Settings
from tests.conformance.conftest import ASK, CHAT, POET, Real
from tests.conformance.test_pairs import FEATURES, bodies, check, gathered
from tests.conformance.test_stream_bytes import choices, streamed
from tests.server.conftest import serving
from tests.server.test_real_server import write_adapter

PROMPT = "<|assistant|>{%- endif -%}"


def r1_like(folder: Path) -> Path:
    """The embedded base under a template whose generation prompt ends inside thoughts."""
    shutil.copytree(EMBEDDED_BASE, folder)
    path = folder / "chat_template.jinja"
    text = path.read_text()
    assert PROMPT in text
    path.write_text(text.replace(PROMPT, "<|assistant|>{{- '<think>\\n' -}}{%- endif -%}"))
    return folder


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    root = tmp_path_factory.mktemp("thinker")
    base = r1_like(root / "r1")
    options: dict[str, Any] = {"dtype": "float32", "kv_cache_tokens": 8192, "num_threads": 1}
    settings = Settings(home=root / "home", model=str(base), **options)
    folder = write_adapter(root / POET, rank=16, seed=3)
    server = build_server(settings, Home.open(settings.home), [(POET, folder)])
    with (
        serving(create_app(server)) as live,
        httpx.Client(base_url=live.url, timeout=60) as http,
    ):
        yield Real(live.url, server, http)
    server.database.close()


def ask(thinker: Real, **fields: Any) -> dict[str, Any]:
    body = {"model": POET, "messages": ASK, "seed": 2, "max_tokens": 24, **fields}
    response = thinker.post(CHAT, body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_thoughts_come_first_and_are_counted(thinker: Real) -> None:
    answer = ask(thinker, thinking_token_budget=6)
    [choice] = answer["choices"]
    assert choice["message"]["reasoning_content"]
    assert choice["message"]["content"]
    assert "think>" not in choice["message"]["content"] + choice["message"]["reasoning_content"]
    details = answer["usage"]["completion_tokens_details"]
    assert details["reasoning_tokens"] == 7  # and the mark that ends them
    none = ask(thinker, reasoning_effort="none")
    assert "reasoning_content" not in none["choices"][0]["message"]
    assert none["usage"]["completion_tokens_details"]["reasoning_tokens"] == 1


def test_an_answer_that_is_cut_inside_its_thoughts_says_nothing_else(thinker: Real) -> None:
    for limit in (1, 2, 5):
        [choice] = ask(thinker, max_tokens=limit)["choices"]
        assert choice["finish_reason"] == "length"
        assert choice["message"]["content"] == ""
        assert "tool_calls" not in choice["message"]


def test_a_stream_tells_thoughts_from_answers(thinker: Real) -> None:
    body = {"model": POET, "messages": ASK, "seed": 2, "max_tokens": 24}
    chunks = streamed(thinker, {**body, "thinking_token_budget": 6})
    kinds = [next(iter(choice["delta"]), None) for choice in choices(chunks)]
    said = kinds.index("content", 1)  # behind the first chunk, which has the role
    assert kinds[0] == "role"
    assert set(kinds[1:said]) == {"reasoning_content"}
    assert set(kinds[said:]) == {"content", None}
    assert gathered(chunks, 0)["thoughts"]


def test_forms_and_calls_begin_behind_the_thoughts(thinker: Real) -> None:
    schema = {"type": "boolean"}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    for choice in ask(thinker, response_format=wanted, n=3, thinking_token_budget=8)["choices"]:
        assert choice["message"]["content"] in ("true", "false")
        assert choice["finish_reason"] == "stop"
    parameters = {"type": "object", "properties": {}, "additionalProperties": False}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    forced: dict[str, Any] = {"tools": [tool], "tool_choice": "required", "max_tokens": 60}
    answer = ask(thinker, **forced, n=3, thinking_token_budget=8, parallel_tool_calls=False)
    for choice in answer["choices"]:
        [call] = choice["message"]["tool_calls"]
        assert json.loads(call["function"]["arguments"]) == {}
        assert choice["message"]["content"] is None
        assert choice["finish_reason"] == "tool_calls"


def test_whatever_goes_with_thoughts_streams_what_it_says_whole(thinker: Real) -> None:
    plain = {each: values[0] for each, values in FEATURES.items()}
    plain |= {"thoughts": {"thinking_token_budget": 3}, "length": {"max_tokens": 12}}
    for name in ("form", "stop"):
        for value in FEATURES[name]:
            assert check(thinker, bodies({**plain, name: value}))


def test_the_official_client_reads_thoughts(thinker: Real) -> None:
    with OpenAI(base_url=thinker.url + "/v1", api_key="none", max_retries=0) as client:
        asked: dict[str, Any] = {"model": POET, "messages": ASK, "max_tokens": 24, "seed": 2}
        extra = {"seed": 2, "thinking_token_budget": 6}
        answer = client.chat.completions.create(**asked, extra_body=extra)
        message: Any = answer.choices[0].message
        assert message.reasoning_content
        again: Any = [*ASK, message, {"role": "user", "content": "And now?"}]  # goes back as it is
        assert client.chat.completions.create(**{**asked, "messages": again}).usage
        response = client.responses.create(
            model=POET, input="hi", max_output_tokens=24, extra_body=extra
        )
        assert [item.type for item in response.output] == ["reasoning", "message"]
        assert response.usage is not None
        assert response.usage.output_tokens_details.reasoning_tokens == 7
