"""Bodies of megabytes: refused or answered at once, while other streams go on."""

from __future__ import annotations

import gc
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from server.json_values import MAX_VALUES
from server.schemas.chat import MAX_MESSAGES
from server.schemas.messages import MAX_PARTS
from tests.server.conftest import Live
from tests.server.fakes import FakeEngine
from tests.server.test_bad_input import CHAT, HELLO, error_of

USER = {"role": "user", "content": "x"}
MOST_S = 1.0  # of this process's time on the CPU: what a busy machine takes is not counted


class Watch:
    """Another client's stream, and the most that the process computed between two of its lines."""

    def __init__(self, live: Live) -> None:
        self.longest_s = 0.0
        self._is_over = False
        self._has_begun = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(live.url,))

    def __enter__(self) -> Watch:
        self._thread.start()
        assert self._has_begun.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over = True
        self._thread.join(10)

    def _read(self, url: str) -> None:
        body = {**HELLO, "stream": True, "max_tokens": 100_000}
        with httpx.stream("POST", url + CHAT, json=body, timeout=20) as response:
            last = time.process_time()
            for _ in response.iter_lines():
                now = time.process_time()
                if self._has_begun.is_set():
                    self.longest_s = max(self.longest_s, now - last)
                self._has_begun.set()
                last = now
                if self._is_over:
                    return


@pytest.fixture
def watch(live: Live, engine: FakeEngine) -> Iterator[Watch]:
    engine.script.is_endless, engine.script.delay_s, engine.max_model_len = True, 0.005, 10**6
    gc.collect()
    gc.freeze()  # what all tests before have left is no affair of the server's collections
    yield Watch(live)
    gc.unfreeze()


def nested(depth: int) -> str:
    return '{"a":' * depth + "1" + "}" * depth


SCHEMA = '{"type": "json_schema", "json_schema": {"name": "x", "schema": %s}}'
LARGE: dict[str, tuple[str, str]] = {
    "100,000 messages": (f'"messages": {json.dumps([USER] * 100_000)}', "messages"),
    "as many wrong messages as may be": (
        f'"messages": {json.dumps([{"role": 5, "content": 5}] * MAX_MESSAGES)}',
        "messages[0].role",
    ),
    "80,000 parts": (
        f'"messages": {json.dumps([{"role": "user", "content": [{"type": "text"}] * 40_000}] * 2)}',
        "messages",
    ),
    "100,000 stop strings": (f'"stop": {json.dumps(["x"] * 100_000)}', "stop"),
    "100,000 biases": (
        f'"logit_bias": {json.dumps({str(i): 1 for i in range(100_000)})}',
        "logit_bias",
    ),
    "100,000 tools": (f'"tools": {json.dumps([{"type": "function"}] * 100_000)}', "tools"),
    "a schema of many values": (
        f'"response_format": {SCHEMA % json.dumps({"enum": [1] * MAX_VALUES})}',
        "response_format.json_schema.schema",
    ),
    "a deep schema": (
        f'"response_format": {SCHEMA % nested(300)}',
        "response_format.json_schema.schema",
    ),
}


@pytest.mark.parametrize("what", LARGE)
def test_a_huge_request_is_refused_at_once_and_stalls_nobody(
    what: str, watch: Watch, client: httpx.Client
) -> None:
    extra, param = LARGE[what]
    content = json.dumps({key: value for key, value in HELLO.items() if key not in extra})
    content = f"{content[:-1]}, {extra}}}"
    assert len(content) < 4 * 2**20
    with watch:
        began = time.process_time()
        response = client.post(CHAT, content=content, headers={"content-type": "application/json"})
        took_s = time.process_time() - began
    error: dict[str, Any] = error_of(response, 400)
    assert error["param"].startswith(param)
    assert took_s < MOST_S
    assert watch.longest_s < MOST_S, watch.longest_s


PART = {"type": "text", "text": "x"}
ALLOWED: dict[str, list[dict[str, Any]]] = {
    "as many messages as may be": [USER] * MAX_MESSAGES,
    "as many parts as may be": [{"role": "user", "content": [PART] * MAX_PARTS}],
}


@pytest.mark.parametrize("what", ALLOWED)
def test_what_is_allowed_stalls_nobody_either(
    what: str, watch: Watch, client: httpx.Client
) -> None:
    with watch:
        body = {**HELLO, "messages": ALLOWED[what], "max_tokens": 1}
        response = client.post(CHAT, json=body)
    assert response.status_code == 200
    assert watch.longest_s < MOST_S, watch.longest_s


async def test_the_document_is_made_in_a_thread(
    web: httpx.AsyncClient, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes half a second, and FastAPI's own route would take it from every stream."""
    made_by: list[int] = []

    def making() -> dict[str, Any]:
        made_by.append(threading.get_ident())
        return {"paths": {}}

    monkeypatch.setattr(app, "openapi", making)
    assert (await web.get("/openapi.json")).json() == {"paths": {}}
    assert made_by != [threading.get_ident()]
