"""A request's time is limited from its receipt to its last token, wherever it spends it."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI
from openai import OpenAI

from server.answers import streaming
from server.app import create_app
from server.settings import Settings
from server.state import Server
from tests.conftest import TinyBase
from tests.server.clients import (
    CHAT,
    HELLO,
    LONG,
    SlowRenderer,
    counts,
    is_whole_again,
    load_for_ever,
)
from tests.server.conftest import Live, Publish, serving, wait_until
from tests.server.fakes import FakeEngine
from tests.server.steps import stepping

HEADER = "x-request-timeout"


def post(url: str, timeout: str, **fields: Any) -> httpx.Response:
    return httpx.post(url + CHAT, json={**HELLO, **fields}, headers={HEADER: timeout}, timeout=20)


def check_refusal(response: httpx.Response, limit: str) -> None:
    assert response.status_code == 408
    assert response.headers["x-should-retry"] == "false"
    error = response.json()["error"]
    assert (error["code"], error["type"], error["param"]) == (
        "request_timeout",
        "invalid_request_error",
        None,
    )
    assert f" {limit} s " in error["message"]


@pytest.fixture
def endless(engine: FakeEngine) -> FakeEngine:
    engine.script.is_endless = True
    engine.script.delay_s = 0.005
    engine.max_model_len = 10**6
    return engine


@pytest.mark.parametrize("fields", [{}, {"n": 2}])
def test_an_answer_that_is_not_finished_in_time_is_a_408(
    live: Live, endless: FakeEngine, fake_server: Server, fields: dict[str, Any]
) -> None:
    began = time.monotonic()
    check_refusal(post(live.url, "0.2", **fields), "0.2")
    assert 0.2 <= time.monotonic() - began < 2
    wait_until(lambda: not endless.running)
    report = counts(fake_server)
    assert (report["requests"], report["timed_out"]) == (1, 1)
    assert report["errors"] == report["aborted"] == 0
    wait_until(lambda: fake_server.lifecycle.num_answers == 0)


def test_a_stream_that_has_begun_ends_with_an_event(
    live: Live, endless: FakeEngine, fake_server: Server
) -> None:
    response = post(live.url, "0.3", stream=True)
    assert response.status_code == 200
    events = response.text.split("\n\n")
    assert json.loads(events[-2].removeprefix("data: "))["error"]["code"] == "request_timeout"
    assert "Hello" in events[1]
    wait_until(lambda: not endless.running)
    assert counts(fake_server)["timed_out"] == 1


def test_a_stream_without_a_token_in_time_is_a_408(
    live: Live, engine: FakeEngine, fake_server: Server
) -> None:
    engine.script.hold = asyncio.Event()
    check_refusal(post(live.url, "0.2", stream=True), "0.2")
    wait_until(lambda: not engine.running)
    assert counts(fake_server)["timed_out"] == 1


def test_a_stream_that_was_opened_without_a_token_ends_with_an_event(
    live: Live, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "HOLD_S", 0.05)
    engine.script.hold = asyncio.Event()
    response = post(live.url, "0.2", stream=True)
    assert response.status_code == 200
    role, error = response.text.removesuffix("\n\n").split("\n\n")
    assert '"role":"assistant"' in role
    assert json.loads(error.removeprefix("data: "))["error"]["code"] == "request_timeout"


@pytest.mark.parametrize("is_stream", [True, False])
def test_time_passes_while_the_prompt_is_tokenised(
    live: Live, fake_server: Server, engine: FakeEngine, is_stream: bool
) -> None:
    renderer: Any = SlowRenderer()
    fake_server.renderer = renderer
    engine.max_model_len = 10_000
    prompt = {"role": "user", "content": "x" * 5000}
    check_refusal(post(live.url, "0.2", messages=[prompt], stream=is_stream), "0.2")
    renderer.may_end.set()
    time.sleep(0.05)
    assert not engine.requests


@pytest.mark.parametrize("is_stream", [True, False])
def test_time_passes_while_the_adapter_loads(
    live: Live, fake_server: Server, engine: FakeEngine, publish: Publish, is_stream: bool
) -> None:
    load_for_ever(fake_server, publish)
    check_refusal(post(live.url, "0.2", model="shop", stream=is_stream), "0.2")
    assert not engine.requests
    report = counts(fake_server, "shop@1")
    assert (report["requests"], report["timed_out"], report["errors"]) == (1, 1, 0)


@pytest.mark.parametrize("is_stream", [True, False])
def test_a_request_whose_time_is_over_in_the_queue_is_never_prefilled(
    tiny_base: TinyBase, tmp_path: Path, is_stream: bool
) -> None:
    with stepping(tiny_base("llama"), tmp_path, max_num_seqs=1) as (live, server, steps):
        runs = threading.Thread(target=httpx.post, args=(live.url + CHAT,), kwargs={"json": LONG})
        runs.start()
        wait_until(lambda: bool(steps.begun))
        check_refusal(post(live.url, "0.2", **{**LONG, "stream": is_stream, "n": 2}), "0.2")
        steps.let(1)
        assert server.engine.stats().num_waiting == 0
        steps.release()
        runs.join(20)
        wait_until(lambda: is_whole_again(server))
        assert len(set.union(*steps.begun)) == 1


@pytest.mark.parametrize("is_stream", [True, False])
def test_no_step_begins_for_a_request_whose_time_is_over(
    tiny_base: TinyBase, tmp_path: Path, is_stream: bool
) -> None:
    with stepping(tiny_base("llama"), tmp_path) as (live, server, steps):
        fields = {**LONG, "stream": is_stream, "n": 2}
        asks = threading.Thread(target=post, args=(live.url, "1"), kwargs=fields)
        asks.start()
        wait_until(lambda: bool(steps.begun))
        steps.let(3)
        num_begun = len(steps.begun)
        wait_until(lambda: counts(server).get("timed_out") == 1)
        steps.release()
        wait_until(lambda: is_whole_again(server))
        asks.join(20)
        time.sleep(0.05)
        assert len(steps.begun) == num_begun


def limited(app: FastAPI, server: Server, max_request_s: float) -> Any:
    given: dict[str, Any] = {"max_request_s": max_request_s}
    server.settings = Settings(home=server.settings.home, **given)
    return serving(create_app(server))


def test_the_operator_s_limit_holds_for_all_and_the_header_only_shortens_it(
    app: FastAPI, endless: FakeEngine, fake_server: Server
) -> None:
    with limited(app, fake_server, 0.3) as live:
        check_refusal(httpx.post(live.url + CHAT, json=HELLO, timeout=20), "0.3")
        check_refusal(post(live.url, "1000"), "0.3")
        check_refusal(post(live.url, "0.1"), "0.1")


@pytest.mark.parametrize("value", ["0", "-1", "soon", "inf", "nan", "", "1s", "2026-01-01"])
def test_a_timeout_that_is_none_is_refused(live: Live, engine: FakeEngine, value: str) -> None:
    response = post(live.url, value)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["param"], error["code"]) == (HEADER, "invalid_value")
    assert not engine.requests


def test_an_answer_in_time_is_left_alone(live: Live, fake_server: Server) -> None:
    assert post(live.url, "5").status_code == 200
    assert post(live.url, "5", stream=True).text.endswith("data: [DONE]\n\n")
    plain = {"model": "tiny-base", "prompt": "hi"}
    late = httpx.post(live.url + "/v1/completions", json=plain, headers={HEADER: "5"})
    assert late.status_code == 200
    assert counts(fake_server)["timed_out"] == 0


def test_plain_completions_have_the_same_deadline(live: Live, endless: FakeEngine) -> None:
    plain = {"model": "tiny-base", "prompt": "hi", "max_tokens": 10_000}
    late = httpx.post(live.url + "/v1/completions", json=plain, headers={HEADER: "0.2"})
    check_refusal(late, "0.2")


def test_openai_s_client_does_not_ask_again_what_has_no_time(
    live: Live, endless: FakeEngine
) -> None:
    with (
        OpenAI(base_url=live.url + "/v1", api_key="none", max_retries=3) as client,
        pytest.raises(openai.APIStatusError) as raised,
    ):
        client.chat.completions.create(
            model="tiny-base",
            messages=[{"role": "user", "content": "hi"}],
            extra_headers={HEADER: "0.2"},
        )
    assert raised.value.status_code == 408
    assert raised.value.code == "request_timeout"
    assert len(endless.requests) == 1
