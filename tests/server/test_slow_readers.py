"""Clients that do not read, or cannot any more: bounded, dropped, and nobody else waits."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.answers import reader
from server.app import create_app
from server.settings import Settings
from server.state import Server
from tests.server.clients import HELLO, WORDY, RawClient, counts, num_aborted
from tests.server.conftest import Live, serving, wait_until
from tests.server.fakes import FakeEngine

Patient = Callable[[dict[str, Any]], AbstractContextManager[Live]]
OWN_NETWORK = "TEST_RUNS_IN_ITS_OWN_NETWORK"
HOME = "10.9.0.2"  # of a client that goes silent


@pytest.fixture
def patient(fake_server: Server, engine: FakeEngine) -> Patient:
    """``patient({...})``: a server with these settings and an engine that never ends an answer."""
    engine.script.is_endless = True
    engine.max_model_len = 10**7

    def start(given: dict[str, Any]) -> AbstractContextManager[Live]:
        fake_server.settings = Settings(home=fake_server.settings.home, **given)
        return serving(create_app(fake_server))

    return start


def test_a_client_that_leaves_too_much_unread_is_dropped(
    patient: Patient,
    engine: FakeEngine,
    fake_server: Server,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reader, "LINGER_S", 0.5)
    with patient({"max_unread_tokens": 200}) as live, caplog.at_level(logging.WARNING):
        client = RawClient(live.port, {**HELLO, "stream": True}, receive_buffer=4096)
        wait_until(lambda: counts(fake_server).get("dropped") == 1, timeout_s=20)
        wait_until(lambda: not engine.running)
        wait_until(lambda: fake_server.lifecycle.num_answers == 0)
        (record,) = [r.getMessage() for r in caplog.records if "dropped" in r.getMessage()]
        assert engine.requests[0].request_id.removesuffix("-0") in record
        assert "key none at 127.0.0.1" in record
        assert "201 tokens" in record
        (num_bytes,) = re.findall(r"(\d+) bytes unread", record)
        assert 100_000 < int(num_bytes) < 300_000, "the kernel keeps little for it"
        metrics = httpx.get(live.url + "/metrics").text
        assert 'loraloop:requests_dropped_total{model_name="tiny-base"} 1.0' in metrics
        assert 'loraloop:requests_timed_out_total{model_name="tiny-base"} 0.0' in metrics
        # Should it read again, it learns why, and that this was the end.
        body = client.read()
        events = [line for line in body.split(b"\n") if line.startswith(b"data: ")]
        assert json.loads(events[-1][6:])["error"]["code"] == "slow_reader"
        assert body.endswith(b"0\r\n\r\n")
        time.sleep(0.6)
    assert len(caplog.records) == 1, "nobody stumbles over the end of its connection"
    assert counts(fake_server)["errors"] == counts(fake_server)["aborted"] == 0


def test_a_dropped_client_that_does_not_read_on_is_cut_off(
    patient: Patient, fake_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "LINGER_S", 0.3)
    with patient({"max_unread_tokens": 200}) as live:
        client = RawClient(live.port, {**HELLO, "stream": True}, receive_buffer=4096)
        wait_until(lambda: counts(fake_server).get("dropped") == 1, timeout_s=20)
        wait_until(lambda: not live.uvicorn.server_state.connections)
        with pytest.raises(ConnectionResetError):
            client.read()


def test_a_client_that_reads_nothing_is_dropped_in_time(
    patient: Patient, engine: FakeEngine, fake_server: Server
) -> None:
    engine.script.delay_s = 0.001
    with patient({"max_unread_tokens": 10**7, "stall_s": 0.5}) as live:
        client = RawClient(live.port, {**WORDY, "stream": True}, receive_buffer=4096)
        wait_until(lambda: counts(fake_server).get("dropped") == 1, timeout_s=20)
        wait_until(lambda: not engine.running)
        client.reset()


def test_a_client_that_reads_slowly_but_steadily_is_not_dropped_for_its_slowness(
    patient: Patient, engine: FakeEngine, fake_server: Server
) -> None:
    engine.script.delay_s = 0.001
    with patient({"max_unread_tokens": 10**7, "stall_s": 0.4}) as live:
        client = RawClient(live.port, {**WORDY, "stream": True}, receive_buffer=4096)
        until = time.monotonic() + 3
        while time.monotonic() < until:
            assert client.socket.recv(1024)
            time.sleep(0.02)
        assert len(engine.running) == 1
        client.reset()
        wait_until(lambda: num_aborted(fake_server) == 1)


def own_network_problem() -> str | None:
    """Why this machine cannot give a test a network of its own."""
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return "needs unshare and ip"
    done = subprocess.run(["unshare", "-rn", "ip", "link", "set", "lo", "up"], capture_output=True)
    return None if done.returncode == 0 else "user namespaces are not allowed"


def run_in_own_network(test: str) -> None:
    """Run this test again where an address can be taken away under a connection."""
    if problem := own_network_problem():
        pytest.skip(problem)
    script = f'ip link set lo up && ip addr add {HOME}/32 dev lo && exec "$@"'
    again = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test]
    done = subprocess.run(
        ["unshare", "-rn", "sh", "-c", script, "sh", *again],
        cwd=Path(__file__).resolve().parents[2],
        env=os.environ | {OWN_NETWORK: "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_client_that_falls_silent_without_a_farewell_is_given_up(
    patient: Patient, engine: FakeEngine, fake_server: Server, request: pytest.FixtureRequest
) -> None:
    if OWN_NETWORK not in os.environ:
        run_in_own_network(request.node.nodeid)
        return
    engine.script.delay_s = 0.02
    with patient({"stall_s": 1}) as live:
        streams = RawClient(live.port, {**HELLO, "stream": True}, source=HOME)
        waits = RawClient(live.port, HELLO, source=HOME)
        streams.read(until=b"Hello")
        wait_until(lambda: len(engine.running) == 2)
        subprocess.run(["ip", "addr", "del", f"{HOME}/32", "dev", "lo"], check=True)
        subprocess.run(["ip", "route", "add", "blackhole", f"{HOME}/32"], check=True)
        time.sleep(1)
        assert len(engine.running) == 2, "nothing has said that it is gone"
        wait_until(lambda: not engine.running, timeout_s=10)
        assert num_aborted(fake_server) == 2
        streams.socket.close()
        waits.socket.close()
