"""The two processes of the demo: our server, and Locust. Both end with it, whatever happens."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

import httpx

READY_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 30.0


class DemoFailed(Exception):
    """The story cannot go on; the text says why, and where the log is."""


class Process:
    """A child with a log file and a session of its own, so that Ctrl-C reaches only the demo."""

    def __init__(self, name: str, command: list[str], log: Path, env: dict[str, str]) -> None:
        self.name, self.log = name, log
        with log.open("ab") as stream:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                env=env,
                start_new_session=True,
            )

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    def send(self, number: signal.Signals) -> None:
        """A signal, unless it has ended already."""
        if self.exit_code is None:
            self._process.send_signal(number)

    def wait(self, timeout_s: float) -> int:
        """Its exit code. Raises DemoFailed if it runs on."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise DemoFailed(f"{self.name} did not end within {timeout_s:.0f} s") from None

    def stop(self) -> None:
        """Ask, wait, and only then kill."""
        self.send(signal.SIGTERM)
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def free_port() -> int:
    """A port that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(home: Path) -> dict[str, str]:
    """This process's environment, without anyone else's Loraloop settings in it."""
    inherited = {key: value for key, value in os.environ.items() if key[:9] != "LORALOOP_"}
    return inherited | {"LORALOOP_HOME": str(home), "PYTHONUNBUFFERED": "1"}


def start_server(folder: Path, port: int) -> Process:
    """``loraloop serve`` on the embedded base, with a fresh home below ``folder``."""
    command = [sys.executable, "-m", "loraloop", "serve", "--port", str(port)]
    return Process("the server", command, folder / "server.log", environment(folder / "home"))


def wait_until_ready(server: Process, url: str) -> float:
    """Seconds until ``/health/ready`` says yes. Raises DemoFailed if it ends or takes too long."""
    started = time.monotonic()
    while time.monotonic() - started < READY_TIMEOUT_S:
        if server.exit_code is not None:
            raise DemoFailed(f"the server ended with exit code {server.exit_code}")
        try:
            if httpx.get(f"{url}/health/ready", timeout=5).status_code == 200:
                return time.monotonic() - started
        except httpx.TransportError:
            pass  # not listening yet
        time.sleep(0.1)
    raise DemoFailed(f"the server was not ready within {READY_TIMEOUT_S:.0f} s")


def start_locust(folder: Path, url: str, name: str, prompts: Path) -> Process:
    """A headless A/B load on the bare ``name``. SIGUSR1 ends it, ``locust.json`` is its summary."""
    root = Path(__file__).resolve().parent.parent
    command = [sys.executable, "-m", "locust", "-f", str(root / "loadtests" / "ab.py")]
    command += ["--host", url, "--model", name, "--headless", "--only-summary"]
    command += ["--users", "4", "--spawn-rate", "4", "--run-time", "600s", "--stop-timeout", "30"]
    command += ["--pause", "0.25", "--max-tokens", "48", "--prompts", str(prompts)]
    command += ["--summary", str(folder / "locust.json"), "--html", str(folder / "locust.html")]
    return Process("Locust", command, folder / "locust.log", environment(folder / "home"))
