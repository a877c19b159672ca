"""So many connections that no file can be opened any more, in a real process with a low limit."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.conftest import TinyBase
from tests.faults.confined import REPOSITORY, _url
from tests.faults.conftest import Client, error_of

LIMIT = 90  # descriptors; a server without clients has about twenty


@pytest.fixture
def process(
    tiny_base: TinyBase, folders: list[Path], tmp_path: Path
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    model = str(tiny_base("llama"))
    serve = ["loraloop.py", "serve", "--port", "0", "--dtype", "float32", "--model", model]
    environment = os.environ | {
        "LORALOOP_HOME": str(tmp_path / "home"),
        "LORALOOP_KERNELS": "torch",
        "LORALOOP_ADAPTER_ROOT": str(folders[0].parent),
        "PYTHONUNBUFFERED": "1",
    }
    log = tmp_path / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["sh", "-c", f'ulimit -n {LIMIT}; exec "$@"', "sh", sys.executable, *serve],
            cwd=REPOSITORY,
            env=environment,
            stdout=output,
            stderr=output,
        )
    try:
        yield process, _url(process, log)
    finally:
        process.terminate()
        assert process.wait(60) == 0


def test_connections_without_end_stop_no_answer_and_the_server_recovers(
    process: tuple[subprocess.Popen[bytes], str], folders: list[Path], expected: dict[str, str]
) -> None:
    running, url = process
    with contextlib.ExitStack() as crowd, httpx.Client(base_url=url, timeout=30) as http:
        client = Client(url, http, "tiny-llama", expected)
        for number, name in enumerate(("good", "spare")):
            body = {"name": name, "path": str(folders[number])}
            assert client.admin("POST", "adapters/load", body).status_code == 201
        assert client.admin("POST", "adapters/unload", {"id": "spare@1"}).status_code == 200
        client.chat("good@1")  # what Python loads with the first answer is loaded
        host, port = url.removeprefix("http://").split(":")
        for _ in range(2 * LIMIT):
            crowd.enter_context(socket.create_connection((host, int(port)), timeout=5))
        time.sleep(0.3)
        assert len(os.listdir(f"/proc/{running.pid}/fd")) >= LIMIT - 2, "it is really full"
        before = psutil.Process(running.pid).cpu_times()
        time.sleep(1)
        after = psutil.Process(running.pid).cpu_times()
        assert after.user + after.system - before.user - before.system < 0.5, "it does not spin"
        answer = client.chat("good@1")
        assert answer.status_code == 200, f"what is open and loaded goes on: {answer.text}"
        for _ in range(20):
            refused = client.chat("spare@1")
            if refused.status_code != 200:
                break
            # A descriptor was free for a moment, between two looks of the registry.
            assert client.admin("POST", "adapters/unload", {"id": "spare@1"}).status_code == 200
        message = error_of(refused, 503, "storage_busy")
        assert "Too many open files" in message
        assert "ulimit -n" in message
        crowd.close()
        deadline = time.monotonic() + 15
        while True:
            try:
                assert httpx.get(f"{url}/health/ready", timeout=5).status_code == 200
                break
            except httpx.TransportError:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        assert client.chat("spare@1").status_code == 200
        assert client.upload().status_code == 200
