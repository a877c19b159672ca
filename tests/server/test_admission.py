"""Who may come in: bounds by answers, prompt tokens and key, told before a prompt costs any."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from server.answers.admission import Admission, Ticket
from server.app import create_app
from server.auth import key_id_of
from server.engine.errors import EngineOverloaded
from server.errors import ApiError
from server.settings import InvalidSettings, Settings, read_settings
from server.state import Server
from tests.server.conftest import Publish
from tests.server.fakes import FakeEngine, FakeRenderer

CHAT = "/v1/chat/completions"
HELLO = {"model": "tiny-base", "messages": [{"role": "user", "content": "hello"}]}


def enter(
    admission: Admission, key: str | None = None, answers: int = 1, tokens: int = 1
) -> Ticket:
    with admission.ticket(key) as ticket:
        admission.claim(ticket, answers, tokens)
    return ticket


# --- the rules ---


def test_the_queue_is_bounded_by_answers() -> None:
    admission = Admission(max_answers=4, max_tokens=1000)
    tickets = [enter(admission) for _ in range(4)]
    with pytest.raises(EngineOverloaded, match="4 answers are running or waiting, the limit is 4"):
        enter(admission)
    tickets[0].leave()
    tickets[0].leave()  # twice is once
    enter(admission)
    with pytest.raises(EngineOverloaded):
        enter(admission)


def test_the_queue_is_bounded_by_prompt_tokens_that_wait() -> None:
    admission = Admission(max_answers=100, max_tokens=1000)
    first, second = enter(admission, tokens=600), enter(admission, tokens=300)
    with pytest.raises(EngineOverloaded, match="900 prompt tokens wait to be read"):
        enter(admission, tokens=200)
    first.begin()  # it has been read
    enter(admission, tokens=700)
    second.leave()
    enter(admission, tokens=300)
    assert admission.report()["waiting_prompt_tokens"] == 1000


def test_a_prompt_that_waits_alone_may_be_of_any_length() -> None:
    admission = Admission(max_answers=100, max_tokens=1000)
    enter(admission, tokens=5000)
    with pytest.raises(EngineOverloaded):
        enter(admission, tokens=1)


def test_a_guess_is_replaced_by_the_count() -> None:
    admission = Admission(max_answers=100, max_tokens=1000)
    enter(admission, tokens=500)
    ticket = enter(admission, tokens=500)
    with pytest.raises(EngineOverloaded):
        ticket.settle(501)
    ticket.leave()
    assert admission.report()["waiting_prompt_tokens"] == 500


def test_a_refused_request_holds_nothing() -> None:
    admission = Admission(max_answers=10, max_tokens=100)
    enter(admission, "a", tokens=100)
    for _ in range(3):
        with pytest.raises(EngineOverloaded):
            enter(admission, "a", answers=2, tokens=50)
    report: Any = admission.report()
    assert report["answers"] == 1
    assert report["waiting_prompt_tokens"] == 100
    assert report["rejected"] == {"tokens": 3}


def test_one_key_leaves_room_for_the_others() -> None:
    admission = Admission(80, 10_000, key_weights={"greedy": 1.0, "a": 1.0, "b": 2.0})
    for _ in range(70):
        enter(admission, "greedy")
    with pytest.raises(EngineOverloaded):
        enter(admission, "greedy")
    for _ in range(10):
        enter(admission, "a")
    with pytest.raises(EngineOverloaded):
        enter(admission, "b")  # now it is full for everybody


def test_a_key_alone_may_fill_the_queue() -> None:
    for weights in ({}, {"only": 1.0}):
        admission = Admission(80, 10_000, key_weights=weights)
        for _ in range(80):
            enter(admission, "only" if weights else None)


def test_each_key_has_its_own_limit() -> None:
    admission = Admission(80, 10_000, max_answers_per_key=2)
    tickets = [enter(admission, "a"), enter(admission, "a"), enter(admission, "b")]
    with pytest.raises(ApiError, match="2 answers for this key are running or waiting") as refusal:
        enter(admission, "a")
    assert (refusal.value.status, refusal.value.code) == (429, "rate_limit_exceeded")
    with pytest.raises(ApiError) as too_many:
        enter(admission, "c", answers=3)  # would never fit
    assert (too_many.value.status, too_many.value.param) == (400, "n")
    tickets[1].leave()
    enter(admission, "a")


def test_retry_after_follows_the_rate_at_which_answers_end() -> None:
    now = 0.0
    admission = Admission(1, 1000, clock=lambda: now)
    for _ in range(10):
        ticket = enter(admission)
        now += 8.0
        ticket.leave()
    enter(admission)
    with pytest.raises(EngineOverloaded) as refusal:
        enter(admission)
    assert 7 <= refusal.value.retry_after_s <= 9


def test_overload_is_one_line_in_the_log_for_each_burst(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    admission = Admission(2, 1000, clock=lambda: now)
    for _ in range(2):
        enter(admission, "0123456789ab")
    for at in (1.0, 1.1, 1.2, 20.0):
        now = at
        with pytest.raises(EngineOverloaded):
            enter(admission)
    lines = [record.message for record in caplog.records]
    assert (
        lines
        == ["refusing requests: 2 answers are running or waiting; key 0123456789ab has 2 answers"]
        * 2
    )


# --- over HTTP ---


@pytest.fixture
def settings(tmp_path: Any) -> Settings:
    given: dict[str, Any] = {
        "api_keys": "sk-a,sk-b",
        "key_weights": "sk-b=3",
        "adapter_weights": "tea=2",
        "max_num_seqs": 4,
        "max_queue": 4,
        "max_queue_tokens": 300,
        "max_body_bytes": 64 * 1024 * 1024,
    }
    return Settings(home=tmp_path / "home", **given)


@asynccontextmanager
async def client(server: Server, key: str = "sk-a") -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=create_app(server))
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://t", headers=headers) as http:
        yield http


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("the condition did not come true")


async def held(server: Server, engine: FakeEngine, num: int) -> list[asyncio.Task[httpx.Response]]:
    """``num`` requests of sk-a that wait for their first token."""
    engine.script.hold = asyncio.Event()

    async def ask() -> httpx.Response:
        async with client(server) as http:
            return await http.post(CHAT, json=HELLO)

    tasks = [asyncio.create_task(ask()) for _ in range(num)]
    await until(lambda: len(engine.requests) == num)
    return tasks


async def test_a_full_queue_is_told_before_tokenising(
    fake_server: Server, engine: FakeEngine
) -> None:
    renderer: Any = fake_server.renderer
    assert isinstance(renderer, FakeRenderer)
    tasks = await held(fake_server, engine, 7)  # the eighth place is for the other key
    num_rendered = renderer.num_rendered
    async with client(fake_server) as greedy, client(fake_server, "sk-b") as other:
        refused = await greedy.post(CHAT, json=HELLO)
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "engine_overloaded"
        assert int(refused.headers["retry-after"]) >= 1
        assert renderer.num_rendered == num_rendered
        report = fake_server.telemetry.report()["adapters"]["base"]
        assert report["rejected"] == 1
        later = asyncio.create_task(other.post(CHAT, json=HELLO))
        await until(lambda: len(engine.requests) == 8)
        assert engine.script.hold is not None
        engine.script.hold.set()
        answers = await asyncio.gather(*tasks, later)
    assert [answer.status_code for answer in answers] == [200] * 8
    assert fake_server.admission.report()["answers"] == 0
    assert fake_server.admission.report()["keys"] == {}


async def test_fifty_megabytes_cost_no_more_than_their_parsing(
    fake_server: Server, engine: FakeEngine
) -> None:
    renderer: Any = fake_server.renderer
    text = "x" * 50_000_000
    body = json.dumps({**HELLO, "messages": [{"role": "user", "content": text}]}).encode()
    headers = {"Content-Type": "application/json"}
    async with client(fake_server) as http:

        async def seconds(status: int, content: bytes) -> float:
            started = time.perf_counter()
            response = await http.post(CHAT, content=content, headers=headers)
            assert response.status_code == status, response.text[:200]
            return time.perf_counter() - started

        unknown = body.replace(b"tiny-base", b"nobody-here")
        parsing_s = min([await seconds(404, unknown) for _ in range(3)])
        alone_s = min([await seconds(400, body) for _ in range(3)])
        tasks = await held(fake_server, engine, 7)
        num_rendered = renderer.num_rendered
        full_s = min([await seconds(400, body) for _ in range(3)])
    assert renderer.num_rendered == num_rendered == 7
    assert max(alone_s, full_s) < 1.5 * parsing_s + 0.05
    for task in tasks:
        task.cancel()


async def test_prompt_tokens_are_counted_while_they_wait(
    fake_server: Server, engine: FakeEngine
) -> None:
    engine.max_model_len = 400
    engine.script.hold = asyncio.Event()
    long = {**HELLO, "messages": [{"role": "user", "content": "x" * 250}]}
    async with client(fake_server) as http:
        first = asyncio.create_task(http.post(CHAT, json={**long, "max_tokens": 5}))
        await until(lambda: bool(engine.requests))
        report: Any = fake_server.admission.report()
        assert report["waiting_prompt_tokens"] == 251
        refused = await http.post(CHAT, json=long)
        assert refused.status_code == 429
        assert "prompt tokens wait to be read" in refused.json()["error"]["message"]
        engine.script.hold.set()
        assert (await first).status_code == 200
        assert (await http.post(CHAT, json=long)).status_code == 200
    report = fake_server.admission.report()
    assert (report["answers"], report["waiting_prompt_tokens"]) == (0, 0)


async def test_a_prompt_that_has_been_read_waits_no_more(
    fake_server: Server, engine: FakeEngine
) -> None:
    engine.script.is_endless, engine.script.delay_s = True, 0.01
    async with client(fake_server) as http:
        task = asyncio.create_task(http.post(CHAT, json={**HELLO, "max_tokens": 50}))
        await until(lambda: engine.num_tokens > 2)
        report: Any = fake_server.admission.report()
        assert (report["answers"], report["waiting_prompt_tokens"]) == (1, 0)
        assert (await task).status_code == 200


async def test_every_way_out_gives_the_places_back(fake_server: Server, engine: FakeEngine) -> None:
    engine.script.fail_after = 2
    async with client(fake_server) as http:
        too_long = {**HELLO, "max_tokens": 10_000}
        bad_role = {**HELLO, "messages": [{"role": "tool", "content": "x", "tool_call_id": "y"}]}
        for body, status in ((HELLO, 500), (too_long, 400), (bad_role, 400)):
            for is_stream in (False, True):
                response = await http.post(CHAT, json={**body, "stream": is_stream})
                assert response.status_code in (status, 200), response.text
        engine.script.refusal = EngineOverloaded("full", retry_after_s=1)
        assert (await http.post(CHAT, json=HELLO)).status_code == 429
    report: Any = fake_server.admission.report()
    assert (report["answers"], report["waiting_prompt_tokens"], report["keys"]) == (0, 0, {})


async def test_a_request_carries_its_keys_and_its_adapters_weight(
    fake_server: Server, engine: FakeEngine, publish: Publish
) -> None:
    publish("tea")
    async with client(fake_server, "sk-b") as http:
        assert (await http.post(CHAT, json={**HELLO, "model": "tea"})).status_code == 200
        assert (await http.post(CHAT, json=HELLO)).status_code == 200
    tea, base = (request.share for request in engine.requests)
    assert (tea.tenant, tea.tenant_weight, tea.adapter_weight) == (key_id_of("sk-b"), 3.0, 2.0)
    assert (base.tenant, base.adapter_weight) == (tea.tenant, 1.0)


# --- settings ---


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("LORALOOP_KEY_WEIGHTS", "sk-x=2", "neither in api_keys nor in admin_keys"),
        ("LORALOOP_ADAPTER_WEIGHTS", "tea", "name=weight"),
        ("LORALOOP_ADAPTER_WEIGHTS", "tea=0", "greater than 0"),
        ("LORALOOP_ADAPTER_WEIGHTS", "tea=nan", "finite"),
        ("LORALOOP_MAX_ANSWERS_PER_KEY", "0", "greater than or equal to 1"),
    ],
)
def test_bad_weights_stop_the_start(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, words: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(InvalidSettings, match=words) as error:
        read_settings()
    assert variable in str(error.value)
    assert "sk-x" not in str(error.value)


def test_keys_with_equals_signs_have_weights_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORALOOP_API_KEYS", "a2V5==,other")
    monkeypatch.setenv("LORALOOP_KEY_WEIGHTS", "a2V5===2.5, other=1")
    assert read_settings().key_weights == {"a2V5==": 2.5, "other": 1.0}
