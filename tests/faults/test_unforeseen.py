"""A mistake of ours in any route, and a tokenizer that raises or panics: one request's 500."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from fastapi import Request

from server.deps import get_server
from server.engine import engine
from server.engine.output import Decode, OutputText
from server.state import Server
from tests.faults.conftest import Site, error_of

POISON = "Raise!"


class Panic(BaseException):
    """What a panic in Rust becomes: pyo3's PanicException is no Exception."""


ERRORS: list[type[BaseException]] = [RuntimeError, Panic]


@pytest.mark.parametrize("error", ERRORS)
def test_a_mistake_in_any_route_is_an_error_that_the_log_explains(
    site: Site, error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    asked = [(m, path) for path, methods in site.app.openapi()["paths"].items() for m in methods]
    assert len(asked) > 30

    async def break_down(request: Request) -> Server:
        if request.headers.get("x-request-id") == "r-1":
            raise error("our mistake")
        return site.server

    site.app.dependency_overrides[get_server] = break_down
    with site.traffic(site.base, "good"):
        for method, path in asked:
            if path == "/health/live":
                continue  # it needs nothing that could break
            caplog.clear()
            url = path.replace("{", "").replace("}", "")
            response = site.http.request(method, url, json={}, headers={"x-request-id": "r-1"})
            assert response.headers["x-request-id"] == "r-1"
            message = error_of(response, 500, "internal_error")
            assert message.endswith("Its operator finds the cause under r-1.")
            [record] = [each for each in caplog.records if each.levelno == logging.ERROR]
            assert record.exc_info is not None
            assert isinstance(record.exc_info[1], error)


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("length", [1, 3_000])  # a long prompt is tokenised in a thread
def test_a_prompt_that_the_tokenizer_cannot_take_fails_alone(
    site: Site, error: type[BaseException], length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    render = site.server.renderer.render_prompt

    def fail(messages: list[dict[str, Any]], **options: Any) -> list[int]:
        if messages[0]["content"].startswith(POISON):
            raise error("tokenizer")
        return list(render(messages, **options))

    monkeypatch.setattr(site.server.renderer, "render_prompt", fail)
    poisoned = [{"role": "user", "content": POISON * length}]
    with site.traffic(site.base, "good"):
        for stream in (False, True):
            response = site.chat("good", messages=poisoned, stream=stream)
            error_of(response, 500, "internal_error")
    assert site.http.get("/health/ready").status_code == 200


@pytest.mark.parametrize("error", ERRORS)
def test_an_answer_that_cannot_be_decoded_fails_alone(
    site: Site, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a stream; the engine goes on with all others."""

    def output(decode: Decode, stop: tuple[str, ...]) -> OutputText:
        def fail(ids: list[int]) -> str:
            if next(left) == 0:
                raise error("tokenizer")
            return decode(ids)

        left = iter(range(8, -1, -1))
        return OutputText(fail if stop == (POISON,) else decode, stop)

    monkeypatch.setattr(engine, "OutputText", output)
    with site.traffic(site.base, "good"):
        message = error_of(site.chat("good", stop=[POISON]), 500, "generation_failed")
        assert "tokenizer" not in message
        body = site.body("good", stop=[POISON], stream=True, max_tokens=50)
        events = site.http.post("/v1/chat/completions", json=body).text.split("\n\n")
        assert len([event for event in events if '"content"' in event]) > 1
        last = json.loads(events[-2].removeprefix("data: "))
        assert last["error"]["code"] == "generation_failed"
    stats = site.server.engine.stats()
    assert (stats.num_running, stats.is_healthy) == (0, True)
    assert stats.kv_blocks_free == stats.kv_blocks_total
