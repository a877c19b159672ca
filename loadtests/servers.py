"""Servers started for a comparison: found ready, paused while another is measured, ended.

A paused server (SIGSTOP) takes no time from its neighbour, so all can be up at once and take turns
row by row, which a noisy minute then hits alike.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from loadtests.client import BadAnswer, get_json, parse_url

ROOT = Path(__file__).resolve().parent.parent
READY_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 30.0


class CannotStart(Exception):
    """A server ended, or was not ready in time; the message holds the end of its log."""


@dataclass(frozen=True)
class Spec:
    """How to start a server; ``{port}`` in the command becomes a free one."""

    name: str
    command: Sequence[str]
    model: str = ""
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Running:
    """A started server, or one that somebody else runs (``process`` is None)."""

    name: str
    url: str
    model: str = ""
    process: subprocess.Popen[bytes] | None = None
    log: Path | None = None  # what it prints, as long as it runs

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def peak_mib(self) -> float | None:
        """Largest resident size so far; None where it is not known."""
        if self.process is None:
            return None
        with suppress(OSError):
            status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
            for line in status.splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) / 1024
        return None

    def _signal(self, number: signal.Signals) -> None:
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)


def end_on_sigterm() -> None:
    """Let ``finally`` run when this process is told to end: its servers must not outlive it."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


@contextmanager
def running(spec: Spec) -> Iterator[Running]:
    """The server while the block runs. Raises CannotStart."""
    port = free_port()
    command = [part.replace("{port}", str(port)) for part in spec.command]
    with tempfile.NamedTemporaryFile(prefix=f"{spec.name}-", suffix=".log") as log:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **spec.env},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a group of its own, to pause and end it whole
        )
        server = Running(spec.name, f"http://127.0.0.1:{port}", spec.model, process, Path(log.name))
        try:
            _wait_until_ready(server, process, Path(log.name))
            yield server
        finally:
            _end(server, process)


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_ready(server: Running, process: subprocess.Popen[bytes], log: Path) -> None:
    endpoint = parse_url(server.url)
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise CannotStart(f"{server.name} ended with {process.returncode}:\n{_tail(log)}")
        try:
            get_json(endpoint, "/models")
        except BadAnswer as error:
            if error.status < 500:  # it listens, and has no such route
                return
        except OSError:
            pass
        else:
            return
        time.sleep(0.3)
    raise CannotStart(f"{server.name} was not ready in {READY_TIMEOUT_S:g} s:\n{_tail(log)}")


def _end(server: Running, process: subprocess.Popen[bytes]) -> None:
    server.resume()  # a stopped process takes no signal
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _tail(log: Path, num_lines: int = 15) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(lines[-num_lines:])
