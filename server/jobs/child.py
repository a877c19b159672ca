"""The training process beside the server: start, follow, freeze, stop. Knows no job rules.

The child has a process group of its own (a Ctrl-C at the server's terminal does not reach it), a
lower priority, and is the first to go when memory runs out. It stays in the server's session: a
session of its own would be a scheduling group of its own (autogroup, on by default on many Linux
systems), and between such groups niceness means nothing: the child took half of every core. Its
stdout is a file that we follow rather than a pipe: what it said survives a crash of the server, and
its death never blocks on us.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import psutil

from server.jobs.progress import ProgressFile

log = logging.getLogger("loraloop.server")

POLL_S = 0.1
SAME_START_S = 2.0  # the machine's own start is only known to a second
FREEZE_POLL_S = 0.002
OOM_SCORE_ADJ = 500  # of 1000: the kernel takes the trainer before the server
SECRETS = ("LORALOOP_API_KEYS", "LORALOOP_ADMIN_KEYS")

Niceness = int | Literal["idle"]  # 0 to 19, or only what nobody else wants of the processor


class TrainingChild:
    """One running training process; made by ``spawn``."""

    def __init__(self, process: subprocess.Popen[bytes], progress: ProgressFile) -> None:
        self.pid = process.pid
        self.started_at = started_at(process.pid) or 0.0
        self.is_frozen = False
        self._progress = progress
        self._unread: deque[dict[str, Any]] = deque()
        self._is_stopping = False
        self._is_publishing = False
        self._ended = _end_of(process)

    @classmethod
    async def spawn(
        cls,
        command: Sequence[str],
        progress: ProgressFile,
        log_file: Path,
        *,
        env: Mapping[str, str],
        niceness: Niceness,
    ) -> TrainingChild:
        """Start ``command`` in the folder of its progress file. Raises OSError."""

        def start() -> subprocess.Popen[bytes]:  # asyncio's own way knows no process groups
            with progress.path.open("ab") as stdout, log_file.open("ab") as stderr:
                return subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=stdout,
                    stderr=stderr,
                    cwd=progress.path.parent,
                    env=dict(env),
                    process_group=0,
                )

        process = await asyncio.to_thread(start)
        _step_back(process.pid, niceness)
        return cls(process, progress)

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """Its progress events until it has ended and said everything."""
        while True:
            has_ended = self._ended.done()
            self._take(self._progress.read_all() if has_ended else self._progress.read())
            while self._unread:
                yield self._unread.popleft()
            if has_ended:
                return
            await asyncio.wait([self._ended], timeout=POLL_S)

    async def wait(self) -> int:
        """Its exit code, negative for a signal. Whatever it left running in its group is killed."""
        exit_code = await asyncio.shield(self._ended)
        _signal_group(self.pid, signal.SIGKILL)
        return exit_code

    async def freeze(self) -> bool:
        """Let it stand still (SIGSTOP) until ``thaw``; False if it may not be stopped now.

        That is while it publishes, because it may hold the lock of the database that the server
        writes to, and once it is to end.
        """
        if not self._may_freeze():
            return False
        self.is_frozen = True
        _signal_group(self.pid, signal.SIGSTOP)
        while self._may_freeze() and not _stands_still(self.pid):
            await asyncio.wait([self._ended], timeout=FREEZE_POLL_S)
        self._take(self._progress.read_all())  # it says that it publishes before it does
        if not self._may_freeze():
            self.thaw()
        return self.is_frozen

    def thaw(self) -> None:
        """Let it go on (SIGCONT)."""
        self.is_frozen = False
        _signal_group(self.pid, signal.SIGCONT)

    async def stop(self, grace_s: float) -> None:
        """SIGTERM, and SIGKILL if it still runs after ``grace_s``. A frozen child is thawed."""
        if self._ended.done():
            return
        self._is_stopping = True
        _signal_group(self.pid, signal.SIGTERM)
        self.thaw()  # a stopped process takes no other signal; whoever stopped it
        await asyncio.wait([self._ended], timeout=grace_s)
        if not self._ended.done():
            log.warning("training process %d ignored SIGTERM for %g s: killing", self.pid, grace_s)
            await self.kill()

    async def kill(self) -> None:
        """SIGKILL, frozen or not."""
        self._is_stopping = True
        if not self._ended.done():
            _signal_group(self.pid, signal.SIGKILL)
            await asyncio.wait([self._ended])

    def _may_freeze(self) -> bool:
        return not (self._is_publishing or self._is_stopping or self._ended.done())

    def _take(self, events: list[dict[str, Any]]) -> None:
        self._unread.extend(events)
        self._is_publishing |= any(event.get("event") == "publishing" for event in events)


def find_by_argument(argument: str) -> tuple[int, float] | None:
    """The process with ``argument`` on its command line, as (pid, start time)."""
    for process in psutil.process_iter(["cmdline", "create_time"]):
        if argument in (process.info["cmdline"] or ()):
            return process.pid, float(process.info["create_time"]) - psutil.boot_time()
    return None


async def stop_orphan(pid: int, recorded_start: float, grace_s: float) -> bool:
    """End the child of a server that died; False if it was gone (or the pid is somebody else's)."""
    if not _is_same(pid, recorded_start):
        return False
    _signal_group(pid, signal.SIGTERM)
    _signal_group(pid, signal.SIGCONT)  # the dead server may have left it frozen
    deadline = time.monotonic() + grace_s
    while _is_same(pid, recorded_start):
        if time.monotonic() > deadline:
            _signal_group(pid, signal.SIGKILL)
        await asyncio.sleep(POLL_S)
    return True


def started_at(pid: int) -> float | None:
    """Seconds after the machine's start at which process ``pid`` began; None if there is none.

    Unix seconds would tell two processes where somebody has set the clock in between.
    """
    try:
        return float(psutil.Process(pid).create_time()) - psutil.boot_time()
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


def _is_same(pid: int, recorded_start: float) -> bool:
    try:
        is_dead = psutil.Process(pid).status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.Error:
        return False
    began = started_at(pid)
    return not is_dead and began is not None and abs(began - recorded_start) < SAME_START_S


def _end_of(process: subprocess.Popen[bytes]) -> asyncio.Future[int]:
    """The exit code, once there is one. The thread waits without Python's lock."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[int] = loop.create_future()

    def tell(exit_code: int) -> None:
        if not ended.done():
            ended.set_result(exit_code)

    def wait() -> None:
        exit_code = process.wait()
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody asks any more
            loop.call_soon_threadsafe(tell, exit_code)

    threading.Thread(target=wait, name=f"wait for {process.pid}", daemon=True).start()
    return ended


def _stands_still(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    except psutil.NoSuchProcess:
        return True


def _step_back(pid: int, niceness: Niceness) -> None:
    """Lower the priority of a child that has only just begun. It may have ended already."""
    try:
        if niceness == "idle" and hasattr(os, "SCHED_IDLE"):
            os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))
        else:
            os.setpriority(os.PRIO_PROCESS, pid, 19 if niceness == "idle" else niceness)
    except ProcessLookupError:
        return
    except OSError as error:
        log.warning("training process %d runs at the server's priority: %s", pid, error)
    with contextlib.suppress(OSError):  # Linux only
        Path(f"/proc/{pid}/oom_score_adj").write_text(str(OOM_SCORE_ADJ))


def _signal_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)
