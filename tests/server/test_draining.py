"""A signal loses no answer: what runs finishes, what is new is told to come back."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from sse_starlette.sse import AppStatus

from server.app import create_app
from server.connection import HttpProtocol
from server.draining import DrainingServer
from server.engine.errors import EngineClosed
from server.settings import Settings
from server.state import Server
from tests.server.conftest import wait_until
from tests.server.fakes import FakeEngine

CHAT = "/v1/chat/completions"
HELLO = {"model": "tiny-base", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(autouse=True)
def no_automatic_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AppStatus, "enable_automatic_graceful_drain", False)


@contextmanager
def running(
    app: FastAPI, server: Server, leave: Callable[[int], object] = print
) -> Iterator[tuple[DrainingServer, str]]:
    ready = threading.Event()
    config = uvicorn.Config(app, http=HttpProtocol, port=0, log_level="error")
    draining = DrainingServer(app, config, server, ready.set, leave)
    thread = threading.Thread(target=draining.run, daemon=True)
    thread.start()
    assert ready.wait(20)
    port = draining.servers[0].sockets[0].getsockname()[1]
    try:
        yield draining, f"http://127.0.0.1:{port}"
        thread.join(10)
        assert not thread.is_alive(), "the server did not end"
    finally:
        draining.should_exit = draining.force_exit = True


def stream(url: str, lines: list[str]) -> None:
    body = {**HELLO, "stream": True}
    with httpx.stream("POST", url + CHAT, json=body, timeout=20) as response:
        lines += [line for line in response.iter_lines() if line]


def stream_until_cut(url: str) -> None:
    with suppress(httpx.HTTPError):
        stream(url, [])


def test_running_answers_finish_and_new_ones_are_503(
    app: FastAPI, fake_server: Server, engine: FakeEngine
) -> None:
    engine.script.tokens = (3, 4) * 15
    engine.script.delay_s = 0.02
    with running(app, fake_server) as (draining, url):
        lines: list[str] = []
        reader = threading.Thread(target=stream, args=(url, lines))
        reader.start()
        wait_until(lambda: engine.num_tokens > 3)
        draining.handle_exit(signal.SIGTERM, None)
        assert httpx.get(url + "/health/ready").status_code == 503
        assert httpx.get(url + "/health/live").status_code == 200
        refused = httpx.post(url + CHAT, json=HELLO)
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        reader.join(10)
    assert lines[-1] == "data: [DONE]"
    assert len(lines) == 1 + 30 + 1 + 1  # role, tokens, finish, DONE
    assert fake_server.telemetry.report()["adapters"]["base"]["errors"] == 0
    assert not engine.is_started


def test_what_outlives_the_grace_time_ends_with_an_error_event(
    fake_server: Server, engine: FakeEngine
) -> None:
    given: dict[str, Any] = {"grace_s": 0.2}
    fake_server.settings = Settings(home=fake_server.settings.home, **given)
    engine.script.is_endless = True
    engine.script.delay_s = 0.01
    engine.max_model_len = 10**6
    with running(create_app(fake_server), fake_server) as (draining, url):
        lines: list[str] = []
        reader = threading.Thread(target=stream, args=(url, lines))
        reader.start()
        wait_until(lambda: engine.num_tokens > 3)
        started = time.monotonic()
        draining.handle_exit(signal.SIGTERM, None)
        reader.join(10)
    assert time.monotonic() - started < 5
    assert json.loads(lines[-1][6:])["error"]["code"] == "engine_closed"


def test_what_waits_for_its_turn_is_503_at_once(
    app: FastAPI, fake_server: Server, engine: FakeEngine
) -> None:
    engine.script.tokens = (3, 4) * 15
    engine.script.delay_s = 0.02
    refused: list[httpx.Response] = []
    ended_at: list[float] = []

    def wait_in_vain(url: str, body: dict[str, Any]) -> None:
        refused.append(httpx.post(url + CHAT, json=body, timeout=20))
        ended_at.append(time.monotonic())

    with running(app, fake_server) as (draining, url):
        lines: list[str] = []
        reader = threading.Thread(target=stream, args=(url, lines))
        reader.start()
        wait_until(lambda: engine.num_tokens > 3)
        engine.script.hold = asyncio.Event()
        waiting = [threading.Thread(target=wait_in_vain, args=(url, HELLO)) for _ in range(3)]
        for thread in waiting:
            thread.start()
        wait_until(lambda: len(engine.running) == 4)
        draining.handle_exit(signal.SIGTERM, None)
        for thread in waiting:
            thread.join(10)
        assert reader.is_alive(), "nobody waited for the one that runs"
        reader.join(10)
    assert lines[-1] == "data: [DONE]"
    assert [response.status_code for response in refused] == [503] * 3
    assert all(response.headers["retry-after"] for response in refused)
    assert {response.json()["error"]["code"] for response in refused} == {"engine_closed"}


def test_a_second_signal_does_not_wait(
    app: FastAPI, fake_server: Server, engine: FakeEngine
) -> None:
    engine.script.is_endless = True
    engine.script.delay_s = 0.01
    engine.max_model_len = 10**6
    left: list[int] = []
    with running(app, fake_server, left.append) as (draining, url):
        reader = threading.Thread(target=stream_until_cut, args=(url,))
        reader.start()
        wait_until(lambda: engine.num_tokens > 3)
        draining.handle_exit(signal.SIGTERM, None)
        assert left == []
        draining.handle_exit(signal.SIGINT, None)
        assert left == [128 + signal.SIGINT]
        draining.should_exit = draining.force_exit = True  # as ``left`` did not end the process
        reader.join(10)


def test_what_stops_the_start_comes_out_of_run(fake_server: Server, engine: FakeEngine) -> None:
    app = create_app(fake_server)

    def fail() -> None:
        raise EngineClosed("no threads")

    engine.start = fail  # type: ignore[method-assign]
    draining = DrainingServer(app, uvicorn.Config(app, port=0), fake_server, pytest.fail)
    with pytest.raises(EngineClosed, match="no threads"):
        draining.run()


def test_a_signal_during_the_start_ends_it_in_order(
    fake_server: Server, engine: FakeEngine
) -> None:
    app = create_app(fake_server)
    draining = DrainingServer(app, uvicorn.Config(app, port=0), fake_server, pytest.fail)
    start = engine.start

    def start_slowly() -> None:
        start()
        draining.handle_exit(signal.SIGTERM, None)

    engine.start = start_slowly  # type: ignore[method-assign]
    draining.run()
    assert not engine.is_started, "it was stopped again"
    assert not draining.started


def test_an_idle_server_ends_at_once(app: FastAPI, fake_server: Server) -> None:
    with running(app, fake_server) as (draining, url):
        assert httpx.get(url + "/health/ready").status_code == 200
        started = time.monotonic()
        draining.handle_exit(signal.SIGINT, None)
    assert time.monotonic() - started < 2
