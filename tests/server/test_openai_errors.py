"""Every exception class of the official client, and what it tries again and when."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI
from openai import AsyncOpenAI, OpenAI

from artifacts.errors import Conflict
from server.answers import generation
from server.app import create_app
from server.engine.errors import EngineClosed, EngineOverloaded, OutOfMemory
from server.settings import Settings
from server.state import Server
from tests.server.conftest import Live
from tests.server.fakes import FakeEngine

HELLO: dict[str, Any] = {"model": "tiny-base", "messages": [{"role": "user", "content": "hi"}]}
Ask = Callable[[OpenAI], Any]


@pytest.fixture
def app(fake_server: Server) -> FastAPI:
    given: dict[str, Any] = {"api_keys": "sk-user", "admin_keys": "sk-admin"}
    fake_server.settings = Settings(home=fake_server.settings.home, **given)
    return create_app(fake_server)


@contextmanager
def user(live: Live, **options: Any) -> Iterator[OpenAI]:
    given: dict[str, Any] = {"api_key": "sk-user", "max_retries": 0, "timeout": 20} | options
    with OpenAI(base_url=live.url + "/v1", **given) as client:
        yield client


def chat(client: OpenAI) -> Any:
    return client.chat.completions.create(**HELLO)


def stream(client: OpenAI) -> Any:
    return list(client.chat.completions.create(**HELLO, stream=True))


REFUSALS: list[tuple[Exception, type[openai.APIStatusError], int]] = [
    (EngineOverloaded("full", retry_after_s=1), openai.RateLimitError, 429),
    (EngineClosed("bye"), openai.InternalServerError, 503),
    (OutOfMemory("no room"), openai.InternalServerError, 503),
    (Conflict("it is in use"), openai.ConflictError, 409),
    (ZeroDivisionError("secret"), openai.InternalServerError, 500),
]


@pytest.mark.parametrize(("refusal", "raised", "status"), REFUSALS)
async def test_what_the_engine_refuses_is_the_class_for_it(
    live: Live,
    engine: FakeEngine,
    refusal: Exception,
    raised: type[openai.APIStatusError],
    status: int,
) -> None:
    engine.script.refusal = refusal
    with user(live) as client:
        for ask in (chat, stream):
            with pytest.raises(raised) as caught:
                ask(client)
            assert caught.value.status_code == status
            assert caught.value.type
            assert caught.value.code
            assert caught.value.request_id == caught.value.response.headers["x-request-id"]
            assert "secret" not in caught.value.message
    client_of = AsyncOpenAI(base_url=live.url + "/v1", api_key="sk-user", max_retries=0)
    async with client_of as asynchronous:
        with pytest.raises(raised):
            await asynchronous.chat.completions.create(**HELLO)


ASKED: list[tuple[Ask, type[openai.APIStatusError]]] = [
    (lambda c: c.chat.completions.create(**HELLO, temperature=9), openai.BadRequestError),
    (lambda c: c.completions.create(model="tiny-base", prompt=""), openai.BadRequestError),
    (lambda c: c.responses.create(model="tiny-base", input=[]), openai.BadRequestError),
    (lambda c: c.embeddings.create(model="tiny-base", input="x"), openai.BadRequestError),
    (lambda c: c.models.retrieve("nobody"), openai.NotFoundError),
    (lambda c: c.images.generate(prompt="x"), openai.NotFoundError),
    (lambda c: c.files.list(), openai.PermissionDeniedError),
    (lambda c: c.fine_tuning.jobs.list(), openai.PermissionDeniedError),
]


def test_what_a_request_is_at_fault_for(live: Live) -> None:
    with user(live) as client:
        for ask, raised in ASKED:
            with pytest.raises(raised) as caught:
                ask(client)
            assert type(caught.value) is raised  # never 422, which is FastAPI's word
            body: Any = caught.value.response.json()
            assert set(body) == {"error"}
            assert set(body["error"]) == {"message", "type", "param", "code"}


def test_a_wrong_key_is_not_tried_again(live: Live) -> None:
    for ask in (chat, lambda client: client.models.list()):
        sent: list[httpx.Request] = []
        http = openai.DefaultHttpxClient(event_hooks={"request": [sent.append]})
        with user(live, api_key="sk-wrong", max_retries=3, http_client=http) as client:
            with pytest.raises(openai.AuthenticationError) as caught:
                ask(client)
            assert caught.value.code == "invalid_api_key"
        assert len(sent) == 1


def test_it_comes_back_when_it_was_told_to(live: Live, engine: FakeEngine) -> None:
    submit = engine.submit
    refused_at: list[float] = []

    def once_full(request: Any) -> Any:
        if not refused_at:
            refused_at.append(time.monotonic())
            raise EngineOverloaded("full", retry_after_s=1)
        return submit(request)

    engine.submit = once_full  # type: ignore[method-assign]
    with user(live, max_retries=2) as client:
        assert chat(client)
    # Left to itself it would come after half a second.
    assert time.monotonic() - refused_at[0] >= 0.95
    assert len(engine.requests) == 1


def test_what_fails_before_the_first_byte_is_tried_again(
    live: Live, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "_LATER", {"Retry-After": "0.1"})
    engine.script.fail_after = 0

    def recovers(request: Any) -> Any:
        made = submit(request)
        engine.script.fail_after = None if len(engine.requests) == 2 else 0
        return made

    submit = engine.submit
    engine.submit = recovers  # type: ignore[method-assign]
    with user(live, max_retries=2) as client:
        chunks = stream(client)
    assert len(engine.requests) == 2
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_no_patience_and_nobody_there(live: Live, engine: FakeEngine) -> None:
    engine.script.delay_s = 0.5
    with user(live, timeout=0.1) as client, pytest.raises(openai.APITimeoutError):
        chat(client)
    gone = OpenAI(base_url="http://127.0.0.1:9/v1", api_key="none", max_retries=0)
    with gone as client, pytest.raises(openai.APIConnectionError):
        chat(client)
