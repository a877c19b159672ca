"""POST /tokenize and /detokenize, and what is said of endpoints that are not here."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from server.state import Server
from tests.server.fakes import EOS, FIRST_ID, ids_of
from tests.server.test_bad_input import USER, error_of

NAMED = {"model": "tiny-base"}


async def test_a_text_and_a_chat_in_tokens(web: httpx.AsyncClient) -> None:
    body = (await web.post("/tokenize", json={**NAMED, "prompt": "hi"})).json()
    assert body == {"count": 2, "max_model_len": 64, "tokens": ids_of("hi"), "token_strs": None}
    body = (
        await web.post("/tokenize", json={"messages": [USER], "return_token_strs": True})
    ).json()
    assert body["tokens"] == [*ids_of("x"), 2]
    assert len(body["token_strs"]) == body["count"] == 2
    assert (await web.post("/tokenize", json={"prompt": ""})).json()["tokens"] == []


async def test_what_the_template_takes_is_handed_on(
    web: httpx.AsyncClient, fake_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def render(messages: Any, **given: Any) -> list[int]:
        asked.append(given)
        return [5]

    monkeypatch.setattr(fake_server.renderer, "render_prompt", render)
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    fields = {
        "tools": [tool],
        "chat_template_kwargs": {"a": 1},
        "add_generation_prompt": False,
        "continue_final_message": True,
    }
    assert (await web.post("/tokenize", json={"messages": [USER], **fields})).status_code == 200
    assert asked == [{"tools": [tool], "variables": {"a": 1}, "continues_last": True}]


async def test_ids_as_text_with_special_tokens(web: httpx.AsyncClient) -> None:
    body = {**NAMED, "tokens": [FIRST_ID, FIRST_ID + 1]}
    assert (await web.post("/detokenize", json=body)).json() == {"prompt": "Hello,"}
    assert (await web.post("/detokenize", json={"tokens": [EOS]})).json() == {"prompt": "<end>"}
    assert (await web.post("/detokenize", json={"tokens": []})).json() == {"prompt": ""}
    long = {"tokens": [FIRST_ID] * 10_000}
    assert (await web.post("/detokenize", json=long)).json() == {"prompt": "Hello" * 10_000}


@pytest.mark.parametrize(
    ("path", "body", "param", "status"),
    [
        ("/tokenize", {}, "prompt", 400),
        ("/tokenize", {"prompt": "a", "messages": [USER]}, "prompt", 400),
        ("/tokenize", {"prompt": "a", "tools": []}, "tools", 400),
        ("/tokenize", {"prompt": "a", "add_generation_prompt": 1}, "add_generation_prompt", 400),
        ("/tokenize", {"messages": [USER], "add_special_tokens": True}, "add_special_tokens", 400),
        ("/tokenize", {"messages": [USER], "chat_template": "x"}, "chat_template", 400),
        (
            "/tokenize",
            {"messages": [USER], "add_generation_prompt": False},
            "add_generation_prompt",
            400,
        ),
        (
            "/tokenize",
            {"messages": [USER], "add_generation_prompt": True, "continue_final_message": True},
            "add_generation_prompt",
            400,
        ),
        ("/tokenize", {"prompt": "a", "model": "nobody"}, "model", 404),
        ("/detokenize", {"tokens": [100]}, "tokens", 400),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]", 400),
        ("/detokenize", {"tokens": "a"}, "tokens", 400),
        ("/detokenize", {"tokens": [1], "model": "nobody"}, "model", 404),
    ],
)  # fmt: skip
async def test_what_is_wrong_is_named(
    web: httpx.AsyncClient, path: str, body: dict[str, Any], param: str, status: int
) -> None:
    assert error_of(await web.post(path, json=body), status)["param"] == param


async def test_embeddings_are_refused_with_the_reason(web: httpx.AsyncClient) -> None:
    for content in (b'{"model": "tiny-base", "input": "a"}', b"{}", b"\xff", b""):
        error = error_of(await web.post("/v1/embeddings", content=content), 400)
        assert error["code"] == "unsupported_endpoint"
        assert "no embeddings" in error["message"]


@pytest.mark.parametrize(
    ("method", "path", "code", "says"),
    [
        ("POST", "/v1/moderations", "unsupported_endpoint", "no moderations"),
        ("POST", "/v1/images/generations", "unsupported_endpoint", "no images"),
        ("POST", "/v1/audio/transcriptions", "unsupported_endpoint", "no speech"),
        ("GET", "/v1/batches/b-1", "unsupported_endpoint", "no batches"),
        ("DELETE", "/v1/assistants/a", "unsupported_endpoint", "no assistants"),
        ("POST", "/v1/messages", "unsupported_endpoint", "Anthropic"),
        ("POST", "/chat/completions", "unknown_url", "Did you mean /v1/chat/completions?"),
        ("POST", "/v1/v1/chat/completions", "unknown_url", "ends in /v1, once"),
        ("POST", "/v1/chat/completions/", "unknown_url", "Did you mean /v1/chat/completions?"),
        ("GET", "/models", "unknown_url", "Did you mean /v1/models?"),
        ("GET", "/nothing", "unknown_url", "/nothing"),
        ("GET", "/v1", "unknown_url", "/v1"),
        ("GET", "/v1//", "unknown_url", "/v1"),
        ("GET", "/" + "x" * 5000, "unknown_url", "…"),
    ],
)
async def test_what_is_not_here_is_said_to_be(
    web: httpx.AsyncClient, method: str, path: str, code: str, says: str
) -> None:
    error = error_of(await web.request(method, path), 404)
    assert error["code"] == code
    assert says in error["message"]
    assert len(error["message"]) < 500
