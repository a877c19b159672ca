"""The child process: its lines, its priority, its end. Real processes, small ones."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from server.jobs import child as module
from server.jobs.child import (
    Niceness,
    TrainingChild,
    child_environment,
    find_by_argument,
    started_at,
    stop_orphan,
)
from server.jobs.progress import ProgressFile, last_lines

IGNORES = "import signal, time; signal.signal(15, signal.SIG_IGN); print('{}', flush=True); "


async def spawn(tmp_path: Path, program: str, niceness: Niceness = 7, **env: str) -> TrainingChild:
    progress = ProgressFile(tmp_path / "progress.jsonl")
    progress.mark_run()
    return await TrainingChild.spawn(
        [sys.executable, "-c", program],
        progress,
        tmp_path / "train.log",
        env=child_environment(1, **env),
        niceness=niceness,
    )


async def events_of(child: TrainingChild) -> list[dict[str, Any]]:
    return [event async for event in child.events()]


async def test_its_lines_arrive_and_its_code(tmp_path: Path) -> None:
    program = (
        "import sys; print('{\"n\": 1}\\n{\"n\": 2}'); print('oops', file=sys.stderr); exit(3)"
    )
    child = await spawn(tmp_path, program)
    assert await events_of(child) == [{"n": 1}, {"n": 2}]
    assert await child.wait() == 3
    assert last_lines(tmp_path / "train.log") == "oops"


async def test_garbage_is_skipped_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    program = (
        'import os; os.write(1, b\'\\xff\\xfe\\n\\n[1]\\n{"loss": NaN}\\n{"half": \');'
        "os.write(1, b'true}\\nnot json\\n{\"torn\"')"
    )
    child = await spawn(tmp_path, program)
    assert await events_of(child) == [{"loss": None}, {"half": True}]
    assert caplog.text.count("not a progress event") == 3


async def test_it_has_its_own_process_group_and_a_lower_priority(tmp_path: Path) -> None:
    program = (
        "import json, os, time; time.sleep(0.2);"
        "print(json.dumps([os.getpgid(0), os.getsid(0), os.nice(0), dict(os.environ),"
        "open('/proc/self/oom_score_adj').read()]).join(['{\"v\": ', '}']))"
    )
    child = await spawn(tmp_path, program, EXTRA="x")
    (event,) = await events_of(child)
    group, session, niceness, env, oom = event["v"]
    assert group == child.pid != os.getpgid(0)
    assert session == os.getsid(0)
    assert niceness == os.nice(0) + 7 or niceness == 7
    assert (env["OMP_NUM_THREADS"], env["EXTRA"]) == ("1", "x")
    assert int(oom) == module.OOM_SCORE_ADJ > 0


async def test_idle_is_what_nobody_else_wants(tmp_path: Path) -> None:
    child = await spawn(tmp_path, "import time; time.sleep(60)", niceness="idle")
    assert os.sched_getscheduler(child.pid) == os.SCHED_IDLE
    await child.kill()


@pytest.mark.parametrize("niceness", ["idle", 10])
async def test_its_priority_counts_against_the_servers_own(
    tmp_path: Path, niceness: Niceness
) -> None:
    """Both on one core: niceness means nothing between sessions that are scheduled as groups."""
    one_core = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    spin = one_core + "while True: pass"
    server = await asyncio.create_subprocess_exec(sys.executable, "-c", spin)
    child = await spawn(tmp_path, spin, niceness=niceness)
    await asyncio.sleep(0.3)  # both spin by now
    before = [_cpu_s(pid) for pid in (server.pid, child.pid)]
    await asyncio.sleep(1.5)
    after = [_cpu_s(pid) for pid in (server.pid, child.pid)]
    server.kill()
    await server.wait()
    await child.kill()
    served, trained = (b - a for a, b in zip(before, after, strict=True))
    assert trained < 0.35 * served


def _cpu_s(pid: int) -> float:
    return float(psutil.Process(pid).cpu_times().user)


async def test_a_refused_priority_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError("not here")

    monkeypatch.setattr("server.jobs.child.os.sched_setscheduler", refuse)
    child = await spawn(tmp_path, "print('{}')", niceness="idle")
    assert await events_of(child) == [{}]
    assert "runs at the server's priority: not here" in caplog.text


def test_the_servers_keys_do_not_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORALOOP_ADMIN_KEYS", "secret")
    monkeypatch.setenv("LORALOOP_API_KEYS", "secret")
    assert "secret" not in child_environment(2).values()


async def test_it_finds_our_packages_from_any_folder(tmp_path: Path) -> None:
    child = await spawn(tmp_path, "import training.config; print('{}')")
    assert await events_of(child) == [{}]
    assert await child.wait() == 0


async def test_sigkill_follows_an_ignored_sigterm(tmp_path: Path) -> None:
    child = await spawn(tmp_path, IGNORES + "time.sleep(60)")
    await anext(child.events())  # now it ignores
    began = time.monotonic()
    await child.stop(0.3)
    assert 0.2 < time.monotonic() - began < 5
    assert await child.wait() == -9
    await child.stop(5)  # nothing left to stop: returns at once


async def test_what_it_started_ends_with_it(tmp_path: Path) -> None:
    program = (
        "import subprocess, sys;"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        "print('{\"pid\": %d}' % p.pid)"
    )
    child = await spawn(tmp_path, program)
    (event,) = await events_of(child)
    await child.wait()
    for _ in range(100):
        if started_at(event["pid"]) is None or _is_zombie(event["pid"]):
            return
        await asyncio.sleep(0.02)
    pytest.fail("the grandchild still runs")


def _is_zombie(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


async def test_an_orphan_is_found_and_stopped(tmp_path: Path) -> None:
    marker = str(tmp_path / "config.yaml")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "import time; time.sleep(60)", marker, start_new_session=True
    )
    found = find_by_argument(marker)
    assert found is not None
    pid, began = found
    assert pid == process.pid
    assert not await stop_orphan(pid, began - 100, 5)  # another process that got the same pid
    assert started_at(pid) is not None
    assert await stop_orphan(pid, began, 5)
    assert await process.wait() == -15
    assert find_by_argument(marker) is None


def test_a_new_run_is_read_from_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "progress.jsonl"
    path.write_text('{"old": 1}\n{"torn')
    progress = ProgressFile(path)
    progress.mark_run(resumed=1)
    with path.open("a") as stream:
        stream.write('{"new": 1}\n')
    assert progress.read() == [{"new": 1}]
    everything = ProgressFile(path).read_all()
    assert everything == [{"old": 1}, {"event": "run", "resumed": 1}, {"new": 1}]


def test_lines_without_end_do_not_fill_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.jobs.progress.READ_BYTES", 64)
    monkeypatch.setattr("server.jobs.progress.MAX_LINE_BYTES", 256)
    path = tmp_path / "progress.jsonl"
    path.write_text("x" * 1000 + "\n" + json.dumps({"n": 1}) + "\n")
    assert ProgressFile(path).read_all() == [{"n": 1}]


def test_the_end_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    assert last_lines(log) == ""
    log.write_bytes(b"x" * 100_000 + b"\nfirst\rsecond\n\n\xff\n")
    assert last_lines(log, 3).splitlines()[-3:] == ["first", "second", "\ufffd"]
