"""A real server: its own process, the embedded base, a home of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from openai import OpenAI

from tests.conftest import TinyBase
from tests.live.zygote import Zygote

REPOSITORY = Path(__file__).resolve().parents[2]
START_TIMEOUT_S = 120.0  # a test machine may be busy; the figure for a quiet one is in LOG.md


@dataclass
class LiveServer:
    """Where it listens, and the process behind it."""

    url: str
    home: Path
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def openai(self) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=120)

    def admin(self, method: str, path: str, body: object = None) -> httpx.Response:
        return httpx.request(method, f"{self.url}/admin/{path}", json=body, timeout=120)


@pytest.fixture(scope="session")
def start_live(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[..., LiveServer]]:
    """``start_live(*options)``: float32, so that answers can be compared token by token."""
    started: list[LiveServer] = []

    def start(*options: str) -> LiveServer:
        folder = tmp_path_factory.mktemp("live")
        log = folder / "server.log"
        command = [sys.executable, "loraloop.py", "serve", "--port", "0", "--dtype", "float32"]
        environment = os.environ | {
            "LORALOOP_HOME": str(folder / "home"),
            "LORALOOP_ADAPTER_ROOT": str(tmp_path_factory.getbasetemp()),
            "LORALOOP_TRAINING_NICENESS": "0",  # idle: after all that other tests compute
            "PYTHONUNBUFFERED": "1",
        }
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, *options],
                cwd=REPOSITORY,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        live = LiveServer(_ready_url(process, log), folder / "home", process, log)
        started.append(live)
        return live

    yield start
    for live in started:
        if live.process.poll() is None:
            live.process.send_signal(signal.SIGTERM)
    for live in started:
        live.process.wait(timeout=60)


@pytest.fixture(scope="session")
def live(start_live: Callable[..., LiveServer]) -> LiveServer:
    return start_live()


@pytest.fixture(scope="session")
def zygote(tiny_base: TinyBase) -> Iterator[Zygote]:
    zygote = Zygote(tiny_base("llama"))
    yield zygote
    zygote.close()


def _ready_url(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        for line in log.read_text().splitlines():
            if line.startswith("ready: "):
                return line.split()[1].removesuffix("/v1")
        assert process.poll() is None, f"the server stopped:\n{log.read_text()}"
        time.sleep(0.1)
    raise AssertionError(f"not ready after {START_TIMEOUT_S} s:\n{log.read_text()}")
