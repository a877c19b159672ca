"""Starts real servers in a fifth of a second: a process that has imported everything, and forks.

What is forked runs ``loraloop …`` with its own arguments, environment and log, like any process;
only the four seconds of imports are shared. ``python -m tests.live.zygote`` reads JSON commands,
one a line: {"start": …} answers with a pid, {"wait": pid, …} with its exit code or null.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

REPOSITORY = Path(__file__).resolve().parents[2]
READY_TIMEOUT_S = 60.0


@dataclass
class Forked:
    """One process: its home, and what it has said so far."""

    zygote: Zygote
    pid: int
    home: Path
    log: Path
    _exit_code: int | None = field(default=None, init=False)

    @property
    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def wait_ready(self) -> str:
        """Its URL, once it takes requests."""
        deadline = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline:
            said = self.said
            for line in said.splitlines(keepends=True):
                if line.startswith("ready: ") and line.endswith("\n"):
                    return line.split()[1].removesuffix("/v1")
            assert Path(f"/proc/{self.pid}").exists(), f"the server stopped:\n{said}"
            time.sleep(0.005)
        raise AssertionError(f"not ready after {READY_TIMEOUT_S} s:\n{self.said}")

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout_s: float = 30.0) -> int:
        """Its exit code, negative for a signal. Blocks until it has ended."""
        if self._exit_code is None:
            self._exit_code = self.zygote.ask({"wait": self.pid, "timeout_s": timeout_s})
            assert self._exit_code is not None, f"runs after {timeout_s} s:\n{self.said}"
        return self._exit_code

    def kill(self) -> None:
        """SIGKILL, if it still runs."""
        if self._exit_code is None:
            self.signal(signal.SIGKILL)
            self.wait()


class Zygote:
    """The process that forks servers. Close it: that ends whatever it has started."""

    def __init__(self, base: Path) -> None:
        """``base`` is opened once, so that what opening needs is imported as well."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.live.zygote", str(base)],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._num_started = 0

    def start(
        self, home: Path, *options: str, trainer: Path | None = None, **variables: str
    ) -> Forked:
        """``loraloop serve options`` on any free port, or the one that ``options`` name.

        ``trainer`` is a script that replaces ``python -m training``.
        """
        arguments = ["serve", "--port", "0", *options]
        return self._fork(home, arguments, trainer, variables)

    def run(self, home: Path, *arguments: str) -> str:
        """``loraloop arguments`` to its end; what it said. It must succeed."""
        forked = self._fork(home, list(arguments), None, {})
        assert forked.wait(timeout_s=120) == 0, forked.said
        return forked.said

    def _fork(
        self, home: Path, arguments: list[str], trainer: Path | None, variables: dict[str, str]
    ) -> Forked:
        self._num_started += 1
        log = home.parent / f"{home.name}-{self._num_started}.log"
        log.touch()
        variables = {
            "LORALOOP_HOME": str(home),
            "LORALOOP_TRAINING_NICENESS": "0",  # idle: after all that other tests compute
            **variables,
        }
        command = {"arguments": arguments, "variables": variables, "log": str(log)}
        pid = self.ask({"start": {**command, "trainer": trainer and str(trainer)}})
        return Forked(self, int(pid), home, log)

    def ask(self, command: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)


def main() -> None:
    _import_all(Path(sys.argv[1]))
    children: set[int] = set()
    for line in sys.stdin:
        command = json.loads(line)
        if "start" in command:
            pid = os.fork()
            if pid == 0:
                _become_loraloop(**command["start"])
            children.add(pid)
            answer: int | None = pid
        else:
            answer = _exit_code(command["wait"], command["timeout_s"])
            if answer is not None:
                children.remove(command["wait"])
        print(json.dumps(answer), flush=True)
    for pid in children:
        os.kill(pid, signal.SIGKILL)


def _exit_code(pid: int, timeout_s: float) -> int | None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return None


def _import_all(base: Path) -> None:
    for name in [name for name in os.environ if name.startswith("LORALOOP_")]:
        del os.environ[name]
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads would not survive a fork

    import sse_starlette  # noqa: F401
    import uvicorn  # noqa: F401

    import loraloop  # noqa: F401
    import server.app
    import server.assembly
    import server.draining  # noqa: F401
    from artifacts.base import open_base

    open_base(base)


def _become_loraloop(
    arguments: list[str], variables: dict[str, str], log: str, trainer: str | None
) -> None:
    """Never returns."""
    import loraloop
    from server.control import TrainingSetup

    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, nothing), (1, output), (2, output)):
        os.dup2(source, target)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.environ.update(variables)
    if trainer is not None:
        setup = partial(TrainingSetup, command=(sys.executable, trainer))
        mock.patch("server.assembly.TrainingSetup", setup).start()
    sys.argv = ["loraloop", *arguments]
    code: Any = 1
    try:
        loraloop.main()
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    main()
