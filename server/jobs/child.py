"""The training process beside the server: start, follow, stop. Knows no database and no job rules.

The child has a session of its own (a Ctrl-C at the server's terminal does not reach it), a lower
priority, and is the first to go when memory runs out. Its stdout is a file that we follow rather
than a pipe: what it said survives a crash of the server, and its death never blocks on us.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

log = logging.getLogger("loraloop.server")

POLL_S = 0.1
MAX_LINE_BYTES = 1 << 20
READ_BYTES = 4 << 20
TAIL_BYTES = 16_384
OOM_SCORE_ADJ = 500  # of 1000: the kernel takes the trainer before the server
SECRETS = ("LORALOOP_API_KEYS", "LORALOOP_ADMIN_KEYS")


class ProgressFile:
    """JSON lines that another process appends; ``read`` returns what is new and complete."""

    def __init__(self, path: Path, *, offset: int = 0) -> None:
        self.path = path
        self._offset = offset
        self._partial = b""

    def mark_run(self, **facts: Any) -> None:
        """Say that a new run begins, and start reading behind that line."""
        line = json.dumps({"event": "run", **facts}) + "\n"
        with self.path.open("ab") as stream:
            if stream.tell():
                stream.write(b"\n")  # the last line of a killed run may lack its end
            stream.write(line.encode())
            self._offset = stream.tell()
        self._partial = b""

    def read(self) -> list[dict[str, Any]]:
        """New events, oldest first. A line that is not a JSON object is logged and skipped."""
        try:
            with self.path.open("rb") as stream:
                stream.seek(self._offset)
                fresh = stream.read(READ_BYTES)
        except FileNotFoundError:
            return []
        self._offset += len(fresh)
        *lines, self._partial = (self._partial + fresh).split(b"\n")
        if len(self._partial) > MAX_LINE_BYTES:
            log.warning("%s: dropped a line of over %d bytes", self.path, MAX_LINE_BYTES)
            self._partial = b""
        events = [self._parse(line) for line in lines if line.strip()]
        return [event for event in events if event is not None]

    def read_all(self) -> list[dict[str, Any]]:
        """Everything up to now, in pieces."""
        events: list[dict[str, Any]] = []
        before = -1
        while before != self._offset:
            before = self._offset
            events += self.read()
        return events

    def _parse(self, line: bytes) -> dict[str, Any] | None:
        try:
            event = json.loads(line, parse_constant=lambda _: None)  # NaN is no JSON
        except ValueError:  # JSONDecodeError and UnicodeDecodeError
            event = None
        if not isinstance(event, dict):
            log.warning("%s: not a progress event: %r", self.path, line[:200])
            return None
        return event


class TrainingChild:
    """One running training process; made by ``spawn``."""

    def __init__(self, process: asyncio.subprocess.Process, progress: ProgressFile) -> None:
        self.pid = process.pid
        self.started_at = started_at(process.pid) or time.time()
        self._process = process
        self._progress = progress
        self._ended = asyncio.ensure_future(process.wait())

    @classmethod
    async def spawn(
        cls,
        command: Sequence[str],
        progress: ProgressFile,
        log_file: Path,
        *,
        env: Mapping[str, str],
        niceness: int,
    ) -> TrainingChild:
        """Start ``command`` in the folder of its progress file. Raises OSError."""
        with progress.path.open("ab") as stdout, log_file.open("ab") as stderr:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                cwd=progress.path.parent,
                env=dict(env),
                start_new_session=True,
            )
        _step_back(process.pid, niceness)
        return cls(process, progress)

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """Its progress events until it has ended and said everything."""
        while True:
            has_ended = self._ended.done()
            for event in self._progress.read_all() if has_ended else self._progress.read():
                yield event
            if has_ended:
                return
            await asyncio.wait([self._ended], timeout=POLL_S)

    async def wait(self) -> int:
        """Its exit code, negative for a signal. Whatever it left running in its group is killed."""
        exit_code = await asyncio.shield(self._ended)
        _signal_group(self.pid, signal.SIGKILL)
        return exit_code

    async def stop(self, grace_s: float) -> None:
        """SIGTERM, and SIGKILL if it still runs after ``grace_s``."""
        if self._ended.done():
            return
        _signal_group(self.pid, signal.SIGTERM)
        await asyncio.wait([self._ended], timeout=grace_s)
        if not self._ended.done():
            log.warning("training process %d ignored SIGTERM for %g s: killing", self.pid, grace_s)
            _signal_group(self.pid, signal.SIGKILL)
            await asyncio.wait([self._ended])


def find_by_argument(argument: str) -> tuple[int, float] | None:
    """The process with ``argument`` on its command line, as (pid, start time)."""
    for process in psutil.process_iter(["cmdline", "create_time"]):
        if argument in (process.info["cmdline"] or ()):
            return process.pid, float(process.info["create_time"])
    return None


async def stop_orphan(pid: int, recorded_start: float, grace_s: float) -> bool:
    """End the child of a server that died; False if it was gone (or the pid is somebody else's)."""
    if not _is_same(pid, recorded_start):
        return False
    _signal_group(pid, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while _is_same(pid, recorded_start):
        if time.monotonic() > deadline:
            _signal_group(pid, signal.SIGKILL)
        await asyncio.sleep(POLL_S)
    return True


def started_at(pid: int) -> float | None:
    """Unix seconds at which process ``pid`` began; None if there is none."""
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def child_environment(num_threads: int, **extra: str) -> dict[str, str]:
    """The server's environment without its keys, with a thread count of the child's own."""
    env = {key: value for key, value in os.environ.items() if key not in SECRETS}
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        env[variable] = str(num_threads)
    # The child's folder is its working directory, so our packages are found by path.
    here = str(Path(__file__).resolve().parents[2])
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [here, env.get("PYTHONPATH")]))
    return {**env, "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1", **extra}


def last_lines(path: Path, count: int = 12) -> str:
    """The end of a log file, as text."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - TAIL_BYTES))
            text = stream.read().decode("utf-8", "replace")
    except OSError:
        return ""
    lines = [line.rstrip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
    return "\n".join(lines[-count:])


def _is_same(pid: int, recorded_start: float) -> bool:
    try:
        process = psutil.Process(pid)
        is_dead = process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
        return not is_dead and abs(process.create_time() - recorded_start) < 1.0
    except psutil.Error:
        return False


def _step_back(pid: int, niceness: int) -> None:
    """Lower the priority of a child that has only just begun. It may have ended already."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, niceness)
    with contextlib.suppress(OSError):  # Linux only
        Path(f"/proc/{pid}/oom_score_adj").write_text(str(OOM_SCORE_ADJ))


def _signal_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)
