"""A child that stands still: really stopped, and still one that can be ended. Real processes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from server.jobs.child import TrainingChild, child_environment, started_at, stop_orphan
from server.jobs.progress import ProgressFile
from tests.server.control.scripts import until

SLEEPS = "import time; print('{}', flush=True); time.sleep(60)"
NOTES_SIGTERM = (
    "import signal, sys, time\n"
    'def leave(*_): print(\'{"event": "interrupted"}\', flush=True); sys.exit(3)\n'
    "signal.signal(signal.SIGTERM, leave)\n" + SLEEPS
)


async def spawn(tmp_path: Path, program: str) -> TrainingChild:
    progress = ProgressFile(tmp_path / "progress.jsonl")
    progress.mark_run()
    child = await TrainingChild.spawn(
        [sys.executable, "-c", program],
        progress,
        tmp_path / "train.log",
        env=child_environment(1),
        niceness=0,
    )
    said = tmp_path / "progress.jsonl"
    await until(lambda: said.read_bytes().count(b"\n") > 1)
    return child


def status(pid: int) -> str:
    return str(psutil.Process(pid).status())


async def test_a_frozen_child_and_what_it_started_stand_still(tmp_path: Path) -> None:
    program = (
        "import subprocess, sys, time\n"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print('{\"pid\": %d}' % p.pid, flush=True); time.sleep(60)"
    )
    child = await spawn(tmp_path, program)
    event = await anext(child.events())
    assert await child.freeze()
    assert status(child.pid) == psutil.STATUS_STOPPED
    await until(lambda: status(event["pid"]) == psutil.STATUS_STOPPED)
    child.thaw()
    await until(lambda: psutil.STATUS_STOPPED not in (status(child.pid), status(event["pid"])))
    await child.kill()


async def test_a_frozen_child_is_asked_to_end_and_does(tmp_path: Path) -> None:
    child = await spawn(tmp_path, NOTES_SIGTERM)
    assert await child.freeze()
    began = time.monotonic()
    await child.stop(grace_s=20)
    assert time.monotonic() - began < 5
    assert await child.wait() == 3


async def test_a_frozen_child_can_be_killed(tmp_path: Path) -> None:
    child = await spawn(tmp_path, SLEEPS)
    assert await child.freeze()
    await child.kill()
    assert await child.wait() == -signal.SIGKILL


async def test_a_child_that_is_to_end_is_not_frozen(tmp_path: Path) -> None:
    ignores = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    child = await spawn(tmp_path, ignores + SLEEPS)
    stopping = asyncio.create_task(child.stop(grace_s=0.5))
    await asyncio.sleep(0.05)
    assert not await child.freeze()
    assert status(child.pid) != psutil.STATUS_STOPPED
    await stopping


async def test_a_stop_overtakes_a_freeze(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.jobs.child._stands_still", lambda pid: False)
    child = await spawn(tmp_path, NOTES_SIGTERM)
    freezing = asyncio.create_task(child.freeze())
    await until(lambda: status(child.pid) == psutil.STATUS_STOPPED)
    await child.stop(grace_s=20)
    assert not await freezing
    assert await child.wait() == 3


async def test_a_child_that_publishes_is_not_left_frozen(tmp_path: Path) -> None:
    """Nobody has read yet that it publishes: it may hold the lock that the server waits for."""
    publishes = 'import time; print(\'{"event": "publishing"}\', flush=True); time.sleep(60)'
    child = await spawn(tmp_path, publishes)
    assert not await child.freeze()
    assert status(child.pid) != psutil.STATUS_STOPPED
    assert await anext(child.events()) == {"event": "publishing"}  # and the word is not lost
    await child.kill()


async def test_an_ended_child_is_not_frozen(tmp_path: Path) -> None:
    child = await spawn(tmp_path, "print('{}', flush=True)")
    await child.wait()
    assert not await child.freeze()


async def test_a_frozen_orphan_is_stopped_in_order(tmp_path: Path) -> None:
    child = await spawn(tmp_path, NOTES_SIGTERM)
    assert await child.freeze()
    began = time.monotonic()
    assert await stop_orphan(child.pid, child.started_at, grace_s=20)
    assert time.monotonic() - began < 5
    assert await child.wait() == 3


async def test_no_child_stands_still_for_ever_when_its_server_is_killed(tmp_path: Path) -> None:
    """The kernel itself wakes a stopped group whose last parent in the session is gone."""
    server = textwrap.dedent("""
        import asyncio, sys, time
        from pathlib import Path
        from tests.server.control.test_freezing import SLEEPS, spawn

        async def main():
            child = await spawn(Path(sys.argv[1]), SLEEPS)
            assert await child.freeze()
            print(child.pid, flush=True)
            time.sleep(60)

        asyncio.run(main())
    """)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", server, str(tmp_path)),
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert process.stdout is not None
    pid = int(await process.stdout.readline())
    began = started_at(pid)
    assert began is not None
    assert status(pid) == psutil.STATUS_STOPPED
    process.kill()
    await process.wait()
    try:
        await until(lambda: not _runs(pid) or status(pid) != psutil.STATUS_STOPPED)
    finally:
        await stop_orphan(pid, began, grace_s=1)


def _runs(pid: int) -> bool:
    try:
        return status(pid) != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
