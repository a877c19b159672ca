"""What becomes of jobs when their server stops, dies, and starts again."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import psutil
import pytest

from artifacts.errors import StorageError
from artifacts.home import Home
from artifacts.registry import Registry
from server.control import Control
from server.jobs.view import job_json
from tests.server.control.conftest import MakeControl, running
from tests.server.control.scripts import (
    ENDLESS,
    GOOD,
    STARTED,
    events,
    reach,
    submit,
    until_told,
)


async def test_a_server_stop_interrupts_and_the_next_one_resumes_on_request(
    make_control: MakeControl, home: Home
) -> None:
    async with running(make_control()) as control:
        job = await submit(control, *ENDLESS, {"publish": True})
        queued = await submit(control, *GOOD, name="other")
        pid = (await reach(control, job, "running")).pid
        told = [event.message for event in events(control, job)]
        began = time.monotonic()
    assert time.monotonic() - began < 4  # did not wait for the grace time
    assert pid is not None
    assert not psutil.pid_exists(pid)
    async with running(make_control()) as control:
        await reach(control, queued, "succeeded")  # was only waiting: goes on by itself
        row = control.jobs.store.get(job.id)
        assert row.status == "interrupted"
        view = job_json(row, {})
        assert (view["status"], view["loraloop"]["status"]) == ("paused", "interrupted")
        assert (home.jobs / job.id / "work" / "checkpoint-7").exists()
        history = [event.message for event in events(control, job)]
        assert history[: len(told)] == told
        assert "The server stopped while the job ran." in history[-1]


async def test_interrupted_jobs_resume_by_themselves_if_configured(
    make_control: MakeControl, home: Home
) -> None:
    async with running(make_control()) as control:
        job = await submit(control, {"emit": STARTED}, {"wait": True}, {"publish": True})
        await reach(control, job, "running")
    async with running(make_control(resume_interrupted_jobs=True)) as control:
        assert (await reach(control, job, "succeeded")).resumed == 1


async def test_a_stop_does_not_hang_on_a_deaf_child(make_control: MakeControl) -> None:
    async with running(make_control(training_stop_grace_s=0.3)) as control:
        job = await submit(control, {"emit": STARTED}, {"ignore_sigterm": True}, {"sleep": 60})
        await until_told(control, job, "Step 1/10")
        began = time.monotonic()
    assert time.monotonic() - began < 5
    assert control.jobs.store.get(job.id).status == "interrupted"


async def test_a_broken_database_keeps_neither_child_nor_server_running(
    make_control: MakeControl, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise StorageError("disk I/O error")

    async with running(make_control()) as control:
        job = await submit(control, *ENDLESS)
        pid = (await reach(control, job, "running")).pid
        assert pid is not None
        with monkeypatch.context() as broken:
            broken.setattr(control.jobs.store, "update", fail)
            broken.setattr(control.jobs.store, "move", fail)
            broken.setattr(control.feedback, "flush", fail)
            await control.stop()
        assert not psutil.pid_exists(pid)
    assert (home.jobs / job.id / "work" / "checkpoint-7").exists()
    async with running(make_control()) as control:
        await reach(control, job, "interrupted")
        assert (home.jobs / job.id / "work" / "checkpoint-7").exists()


async def die(control: Control) -> None:
    """What SIGKILL does to a server: its tasks vanish, its children live on."""
    jobs: Any = control.jobs
    tasks = [*jobs._background, *jobs._tasks, *control._flushing]
    for run in jobs._runs.values():
        run._child.stop = _nothing
        run._store = None
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _nothing(grace_s: float) -> None:
    return None


@pytest.mark.parametrize(
    ("lines", "asked", "status"),
    [
        ([{"wait": True}], None, "interrupted"),
        ([{"wait": True}], "cancel", "cancelled"),
        ([{"wait": True}], "pause", "paused"),
        ([{"publish": True}, {"wait": True}], None, "succeeded"),
        ([{"register": True}, {"wait": True}], None, "succeeded"),
        ([{"register": True}, {"wait": True}], "cancel", "cancelled"),
        ([{"emit": {"event": "failed", "message": "no"}}, {"wait": True}], None, "failed"),
    ],
)
async def test_a_dead_servers_job_is_settled_by_what_it_left(
    make_control: MakeControl,
    registry: Registry,
    lines: list[dict[str, Any]],
    asked: str | None,
    status: str,
) -> None:
    first = make_control()
    await first.start()
    job = await submit(first, {"emit": STARTED}, *lines)
    await until_told(first, job, "Step 1/10")
    pid = first.jobs.store.get(job.id).pid
    assert pid is not None
    if asked is not None:
        first.jobs.store.update(job.id, stopping=asked)
    await die(first)
    assert psutil.pid_exists(pid)
    assert first.jobs.store.get(job.id).status == "running"
    async with running(make_control()) as second:
        settled = await reach(second, job, status)
        assert settled.pid is None
        with pytest.raises((psutil.NoSuchProcess, ChildProcessError, AssertionError)):
            assert psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        has_version = status == "succeeded"
        assert bool(registry.list()) == has_version
        # and the queue works
        await reach(second, await submit(second, *GOOD), "succeeded")


async def test_an_unrecorded_orphan_is_found(make_control: MakeControl) -> None:
    first = make_control()
    await first.start()
    job = await submit(first, {"emit": STARTED}, {"wait": True})
    pid = (await reach(first, job, "running")).pid
    assert pid is not None
    first.jobs.store.update(job.id, pid=None, pid_started_at=None)
    await die(first)
    async with running(make_control()) as second:
        await reach(second, job, "interrupted")
        with pytest.raises((psutil.NoSuchProcess, AssertionError)):
            assert psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


async def test_what_a_crash_left_of_an_ended_job_is_removed(
    make_control: MakeControl, home: Home
) -> None:
    async with running(make_control(max_running_jobs=0)) as control:
        job = await submit(control, *GOOD)
        await control.jobs.cancel(job.id)
    folder = home.jobs / job.id
    (folder / "work" / "checkpoint-3").mkdir(parents=True)
    (folder / "train.log").touch()
    async with running(make_control()) as control:
        await reach(control, await submit(control, *GOOD), "succeeded")
        assert [path.name for path in folder.iterdir()] == ["train.log"]
