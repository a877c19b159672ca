"""Exactly one end for each accepted request, whatever its client does."""

from __future__ import annotations

import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pytest

from server.app import create_app
from server.engine.request import GenerationRequest
from server.settings import Settings
from server.state import Server
from tests.server.clients import HELLO, LEAVING, WORDY, RawClient, counts
from tests.server.conftest import serving, wait_until
from tests.server.fakes import FakeEngine, FakeStream, Script


@dataclass
class Moody(FakeEngine):
    """Some answers fail, at once or in their middle."""

    dice: random.Random = field(default_factory=random.Random)

    def submit(self, request: GenerationRequest) -> FakeStream:
        self.script = replace(self.script, fail_after=self.dice.choice([None] * 8 + [0, 3]))
        return super().submit(request)


ENDS = {
    b"data: [DONE]": "ok",
    b'"total_tokens"': "ok",
    b'"request_timeout"': "timed_out",
    b'"generation_failed"': "errors",
    b'"slow_reader"': "dropped",
}


def end_of(received: bytes) -> str:
    """How an answer ended for a client that has read all of it."""
    ends = [end for mark, end in ENDS.items() for _ in range(received.count(mark))]
    assert len(ends) == 1, f"{len(ends)} ends: {received!r}"
    return ends[0]


def play(port: int, seed: int) -> str:
    """One request that takes a random course; how it ended, "left" for who does not know.

    On a crowded machine one who stays may be dropped as a slow reader, before it has read of it.
    """
    try:
        return _play(port, seed)
    except ConnectionResetError:
        return "left"


def _play(port: int, seed: int) -> str:
    dice = random.Random(seed)
    course = dice.choice(["stays", "stays", "sleeps", "reset", "finish"])
    headers = {"Connection": "close"}
    if course == "sleeps":
        body = {**WORDY, "stream": True, "max_tokens": 1000}
        client = RawClient(port, body, headers=headers, receive_buffer=4096)
        time.sleep(0.6)
        return end_of(client.read())
    limit = dice.choice([None, None, "0.001", "0.02", "0.05", "9"])
    if limit is not None:
        headers["x-request-timeout"] = limit
    fields = {"n": dice.choice([1, 1, 2, 3]), "max_tokens": dice.choice([1, 5, 20, 60])}
    body = {**HELLO, **fields, "stream": dice.random() < 0.6}
    client = RawClient(port, body, headers=headers)
    if course == "stays":
        return end_of(client.read())
    time.sleep(dice.random() * 0.1)
    LEAVING[course](client)
    return "left"


@pytest.mark.parametrize("seed", range(3))
def test_every_request_ends_once_whatever_its_client_does(
    fake_server: Server, caplog: pytest.LogCaptureFixture, seed: int
) -> None:
    num_requests = 150
    dice = random.Random(seed)
    script = Script(is_endless=True, delay_s=0.001)
    engine = fake_server.engine = Moody(script, dice=dice, max_model_len=10**6)
    given: dict[str, Any] = {"max_unread_tokens": 50, "stall_s": 0.4}
    fake_server.settings = Settings(home=fake_server.settings.home, **given)
    with serving(create_app(fake_server)) as live, ThreadPoolExecutor(16) as pool:
        seeds = [dice.random() for _ in range(num_requests)]
        ends = Counter(pool.map(partial(play, live.port), seeds))
        wait_until(lambda: not live.uvicorn.server_state.tasks)
    report = counts(fake_server)
    assert min(ends[end] for end in ("ok", "timed_out", "errors", "dropped", "left")) > 0
    accepted = {request.request_id.rpartition("-")[0] for request in engine.requests}
    assert report["requests"] == len(accepted)
    # Who stayed knows the end; those who left may have had any.
    ended = {end: report[end] for end in ("timed_out", "errors", "dropped")}
    ended["ok"] = len(accepted) - sum(ended.values()) - report["aborted"]
    unaccepted = num_requests - len(accepted)  # left, or out of time, before
    for end, number in ended.items():
        at_least = ends[end] - (unaccepted if end == "timed_out" else 0)
        assert at_least <= number <= ends[end] + ends["left"], end
    assert 0 < report["aborted"] <= ends["left"]
    assert not engine.running
    assert fake_server.lifecycle.num_answers == 0
    assert fake_server.admission.report()["answers"] == 0
    assert fake_server.admission.report()["waiting_prompt_tokens"] == 0
    assert not [r for r in caplog.records if r.name.startswith("uvicorn")]
