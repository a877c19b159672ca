"""What /health/ready says of the engine, over HTTP, with the real engine thread behind it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import httpx
import pytest

from server.app import create_app
from server.engine.engine import Engine
from server.engine.execution import FAILURE_MEMORY_S
from server.engine.request import GenerationRequest, SamplingParams
from server.state import Server
from tests.server.conftest import serving
from tests.server.engine.fake import FakeRunner, fake_engine

Sick = tuple[httpx.Client, Engine, FakeRunner]


@pytest.fixture
def sick(fake_server: Server) -> Iterator[Sick]:
    engine, runner = fake_engine()
    app = create_app(replace(fake_server, engine=engine))
    with serving(app) as live, httpx.Client(base_url=live.url, timeout=20) as http:
        yield http, engine, runner


def answer(engine: Engine, name: str) -> str | None:
    """How one request of three tokens ends."""

    async def ask() -> str | None:
        sampling = SamplingParams(max_tokens=3, temperature=0, ignore_eos=True)
        stream = engine.submit(GenerationRequest(name, (1, 2, 3), sampling))
        return [delta async for delta in stream][-1].finish_reason

    return asyncio.run(ask())


def ready(http: httpx.Client) -> int:
    return http.get("/health/ready").status_code


def test_two_failures_without_a_culprit_are_not_ready_for_a_minute(sick: Sick) -> None:
    http, engine, runner = sick
    assert ready(http) == 200
    runner.num_transient = 1
    assert answer(engine, "one") == "length", "the request itself was not hurt"
    assert ready(http) == 200, "one failure may happen"
    runner.num_transient = 1
    assert answer(engine, "two") == "length"
    response = http.get("/health/ready")
    assert response.status_code == 503
    assert response.json() == {"status": "not ready", "reason": "the engine has failed"}
    assert http.get("/health/live").status_code == 200
    runner.clock.now += FAILURE_MEMORY_S
    assert ready(http) == 200, "what is long past is forgotten, or nobody would ever ask again"


def test_requests_that_fail_alone_are_their_own_culprits(sick: Sick) -> None:
    http, engine, runner = sick
    for i in range(5):
        runner.poisoned.add(f"bad{i}")
        assert answer(engine, f"bad{i}") == "error"
        assert answer(engine, f"good{i}") == "length"
    assert ready(http) == 200


def test_when_every_request_fails_the_engine_is_to_blame(sick: Sick) -> None:
    http, engine, runner = sick
    runner.poisoned |= {f"r{i}" for i in range(3)}
    assert [answer(engine, f"r{i}") for i in range(3)] == ["error"] * 3
    assert ready(http) == 503


def test_a_dead_engine_is_not_ready_and_ends_what_was_open(
    sick: Sick, monkeypatch: pytest.MonkeyPatch
) -> None:
    http, engine, _ = sick

    def bug(now: float) -> None:
        raise AssertionError("a bug of ours")

    monkeypatch.setattr(engine._scheduler, "schedule", bug)
    assert answer(engine, "one") == "error"
    assert ready(http) == 503
