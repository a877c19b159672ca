"""Clients that leave cost no further step; those that wait are kept; failures tell their status."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from server.answers import streaming
from server.state import Server
from tests.conftest import TinyBase
from tests.server.clients import (
    CHAT,
    HELLO,
    LEAVING,
    LONG,
    RawClient,
    SlowRenderer,
    counts,
    is_whole_again,
    load_for_ever,
    num_aborted,
)
from tests.server.conftest import Live, Publish, wait_until
from tests.server.fakes import FakeEngine
from tests.server.steps import stepping

# --- clients that leave ---------------------------------------------------------------------------


@pytest.mark.parametrize("leave", LEAVING)
@pytest.mark.parametrize("is_stream", [True, False])
@pytest.mark.parametrize("n", [1, 3])
def test_no_step_begins_for_a_client_that_is_known_to_have_left(
    tiny_base: TinyBase, tmp_path: Path, leave: str, is_stream: bool, n: int
) -> None:
    with stepping(tiny_base("llama"), tmp_path) as (live, server, steps):
        client = RawClient(live.port, {**LONG, "stream": is_stream, "n": n})
        wait_until(lambda: bool(steps.begun))
        steps.let(5)
        if is_stream:
            assert b'"role":"assistant"' in client.read(until=b'"content":')
        num_begun = len(steps.begun)  # the last of them is held: the engine hears nothing yet
        assert len(steps.begun[-1]) == n
        LEAVING[leave](client)
        wait_until(lambda: num_aborted(server) == 1)
        steps.release()
        wait_until(lambda: is_whole_again(server))
        time.sleep(0.05)
        assert len(steps.begun) == num_begun


@pytest.mark.parametrize("is_stream", [True, False])
def test_generation_stops_within_two_steps_of_the_client_leaving(
    tiny_base: TinyBase, tmp_path: Path, is_stream: bool
) -> None:
    with stepping(tiny_base("llama"), tmp_path) as (live, server, steps):
        steps.pace_s = 0.1
        steps.release()
        client = RawClient(live.port, {**LONG, "stream": is_stream, "n": 2})
        wait_until(lambda: len(steps.begun) > 3)
        num_begun = len(steps.begun)
        client.reset()
        wait_until(lambda: is_whole_again(server))
        assert len(steps.begun) <= num_begun + 2


@pytest.mark.parametrize("leave", LEAVING)
@pytest.mark.parametrize("is_stream", [True, False])
def test_a_client_that_leaves_while_queued_is_never_prefilled(
    tiny_base: TinyBase, tmp_path: Path, leave: str, is_stream: bool
) -> None:
    with stepping(tiny_base("llama"), tmp_path, max_num_seqs=1) as (live, server, steps):
        stays = RawClient(live.port, {**LONG, "max_tokens": 8})
        wait_until(lambda: bool(steps.begun))
        leaves = RawClient(live.port, {**LONG, "stream": is_stream, "n": 2})
        wait_until(lambda: server.engine.stats().num_waiting == 2)
        LEAVING[leave](leaves)
        wait_until(lambda: num_aborted(server) == 1)
        steps.let(1)
        assert server.engine.stats().num_waiting == 0, "at once, not when its turn comes"
        steps.release()
        assert b"200 OK" in stays.read(until=b'"usage"')
        wait_until(lambda: is_whole_again(server))
        assert len(set.union(*steps.begun)) == 1


@pytest.mark.parametrize("leave", LEAVING)
@pytest.mark.parametrize("is_stream", [True, False])
def test_a_client_that_leaves_while_its_prompt_is_tokenised_reaches_no_engine(
    live: Live, fake_server: Server, engine: FakeEngine, leave: str, is_stream: bool
) -> None:
    renderer: Any = SlowRenderer()
    fake_server.renderer = renderer
    engine.max_model_len = 10_000
    prompt = {"role": "user", "content": "x" * 5000}  # long enough to be tokenised in a thread
    client = RawClient(live.port, {**HELLO, "messages": [prompt], "stream": is_stream})
    assert renderer.has_begun.wait(5)
    LEAVING[leave](client)
    wait_until(lambda: not live.uvicorn.server_state.tasks)
    renderer.may_end.set()
    time.sleep(0.05)
    assert not engine.requests
    assert fake_server.lifecycle.num_answers == 0


@pytest.mark.parametrize("leave", LEAVING)
@pytest.mark.parametrize("is_stream", [True, False])
def test_a_client_that_leaves_while_its_adapter_loads_reaches_no_engine(
    live: Live,
    fake_server: Server,
    engine: FakeEngine,
    publish: Publish,
    leave: str,
    is_stream: bool,
) -> None:
    is_loading = load_for_ever(fake_server, publish)
    client = RawClient(live.port, {**HELLO, "model": "shop", "stream": is_stream})
    assert is_loading.wait(5)
    LEAVING[leave](client)
    wait_until(lambda: not live.uvicorn.server_state.tasks)
    assert not engine.requests
    assert fake_server.lifecycle.num_answers == 0


def test_a_client_that_pipelines_requests_and_leaves_has_them_all_stopped(
    live: Live, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.script.is_endless = True
    engine.script.delay_s = 0.002
    engine.max_model_len = 10**6
    client = RawClient(live.port, {**HELLO, "stream": True})
    client.read(until=b"Hello")
    client.post({**HELLO, "stream": True})
    time.sleep(0.05)
    client.reset()
    wait_until(lambda: not engine.running)
    assert len(engine.aborted) == len(engine.requests) == 1
    wait_until(lambda: not live.uvicorn.server_state.tasks)
    assert not caplog.records


# --- clients that wait ----------------------------------------------------------------------------


def test_comments_keep_a_queued_stream_alive(
    tiny_base: TinyBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "HOLD_S", 0.1)
    monkeypatch.setattr(streaming, "PING_S", 0.05)
    with stepping(tiny_base("llama"), tmp_path, max_num_seqs=1) as (live, server, steps):
        runs = RawClient(live.port, LONG)
        wait_until(lambda: bool(steps.begun))
        waits = RawClient(live.port, {**LONG, "stream": True})
        head, _, body = waits.read(until=b": ping\n\n").partition(b"\r\n\r\n")
        assert b"200 OK" in head
        while body.count(b": ping\n\n") < 3:
            body += waits.socket.recv(65536)
        assert server.engine.stats().num_waiting == 1
        assert b'"role":"assistant"' in body
        assert body.count(b"data: ") == 1
        runs.reset()


def test_openai_s_client_reads_over_the_comments(
    live: Live, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "HOLD_S", 0.05)
    monkeypatch.setattr(streaming, "PING_S", 0.02)
    engine.script.delay_s = 0.1
    with httpx.stream("POST", live.url + CHAT, json={**HELLO, "stream": True}) as response:
        assert sum(line == ": ping" for line in response.iter_lines()) >= 5
    with OpenAI(base_url=live.url + "/v1", api_key="none", max_retries=0) as client:
        stream = client.chat.completions.create(
            model="tiny-base", messages=[{"role": "user", "content": "hi"}], stream=True
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "Hello, world!"


# --- a true status for what fails before the first byte -------------------------------------------


def test_a_queued_stream_that_is_shed_is_a_503(tiny_base: TinyBase, tmp_path: Path) -> None:
    with stepping(tiny_base("llama"), tmp_path, max_num_seqs=1) as (live, server, steps):
        runs = RawClient(live.port, {**LONG, "max_tokens": 8})
        wait_until(lambda: bool(steps.begun))
        waits = RawClient(live.port, {**LONG, "stream": True})
        wait_until(lambda: server.engine.stats().num_waiting == 1)
        server.engine.abort_waiting()
        steps.release()
        head, _, body = waits.read(until=b"}}").partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503")
        assert b"retry-after: 2" in head
        assert json.loads(body)["error"]["code"] == "engine_closed"
        assert b"200 OK" in runs.read(until=b'"usage"')


def test_openai_s_client_sends_a_stream_again_that_failed_before_its_first_byte(
    live: Live, engine: FakeEngine
) -> None:
    engine.script.fail_after = 0
    with OpenAI(base_url=live.url + "/v1", api_key="none", max_retries=1) as client:
        timer = threading.Timer(0.5, lambda: setattr(engine.script, "fail_after", None))
        timer.start()
        stream = client.chat.completions.create(
            model="tiny-base", messages=[{"role": "user", "content": "hi"}], stream=True
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "Hello, world!"
        timer.join()
    assert len(engine.requests) == 2


def test_a_stream_that_fails_before_its_first_byte_is_a_500(
    client: httpx.Client, engine: FakeEngine, fake_server: Server
) -> None:
    engine.script.fail_after = 0
    for fields in ({}, {"stream": True}, {"stream": True, "n": 2}):
        response = client.post(CHAT, json={**HELLO, **fields})
        assert response.status_code == 500
        assert response.headers["retry-after"]
        assert response.headers["content-type"] == "application/json"
        assert response.json()["error"]["code"] == "generation_failed"
    assert (counts(fake_server)["requests"], counts(fake_server)["errors"]) == (3, 3)


def test_what_fails_after_the_hold_is_an_event(
    live: Live, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "HOLD_S", 0.05)
    engine.script.delay_s = 0.3
    engine.script.fail_after = 0
    with (
        OpenAI(base_url=live.url + "/v1", api_key="none", max_retries=0) as client,
        pytest.raises(openai.APIError, match="could not be generated") as raised,
    ):
        list(
            client.chat.completions.create(
                model="tiny-base", messages=[{"role": "user", "content": "hi"}], stream=True
            )
        )
    assert not isinstance(raised.value, openai.APIStatusError)
