"""Jobs stand aside for the chats: real child processes, a P90 of our own making."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
import psutil
import pytest
from sqlalchemy.exc import OperationalError

from artifacts.home import Home
from server.control import Control
from server.tables import JobRow
from tests.server.control.conftest import MakeControl, running
from tests.server.control.scripts import (
    ENDLESS,
    GOOD,
    STARTED,
    events,
    progress,
    reach,
    submit,
    until,
    until_told,
)
from tests.server.control.test_restarts import die

TARGET_MS = 100.0
ASIDE, ON = "Training stands aside", "Training goes on"


class Chats:
    """Whose first tokens take as long as the test says."""

    def __init__(self, p90_s: float | None = None) -> None:
        self.p90_s = p90_s
        self.patience_s: float | None = None

    def __call__(self, patience_s: float) -> float | None:
        self.patience_s = patience_s
        return self.p90_s


@pytest.fixture
def chats() -> Chats:
    return Chats()


@pytest.fixture
def pausing(make_control: MakeControl, chats: Chats) -> MakeControl:
    """A control plane that lets jobs pause at once and for as long as the chats are slow."""

    def make(**limits: Any) -> Control:
        defaults = {"training_pause_after_s": 0.0, "training_max_pause_s": 600.0}
        target = {"training_ttft_target_ms": TARGET_MS}
        return make_control(chats, **{**target, **defaults, **limits})

    return make


@pytest.fixture(autouse=True)
def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.jobs.pauses.LOOK_S", 0.02)


def is_stopped(control: Control, job: JobRow) -> bool:
    pid = control.jobs.store.get(job.id).pid
    try:
        return pid is not None and psutil.Process(pid).status() == psutil.STATUS_STOPPED
    except psutil.NoSuchProcess:
        return False


def told(control: Control, job: JobRow, word: str) -> list[str]:
    return [event.message for event in events(control, job) if event.message.startswith(word)]


async def paused_job(control: Control, chats: Chats, *lines: dict[str, Any]) -> JobRow:
    job = await submit(control, *(lines or ENDLESS))
    await until_told(control, job, "Step 1/10")  # it listens to signals by then
    chats.p90_s = 0.4
    await until(lambda: is_stopped(control, job))
    return job


async def test_a_job_stands_aside_after_the_configured_time_and_goes_on(
    pausing: MakeControl, chats: Chats
) -> None:
    async with running(pausing(training_pause_after_s=0.6)) as control:
        job = await submit(control, *ENDLESS)
        await until_told(control, job, "Step 1/10")
        chats.p90_s = 0.4
        began = time.monotonic()
        await until(lambda: is_stopped(control, job))
        assert 0.55 < time.monotonic() - began < 3
        assert chats.patience_s == TARGET_MS / 1000
        await until_told(control, job, ASIDE)
        assert control.jobs.report()["is_paused"]
        await asyncio.sleep(0.5)
        chats.p90_s = 0.05
        await until(lambda: not is_stopped(control, job))
        await until_told(control, job, ON)
        (aside,) = told(control, job, ASIDE)
        (on,) = told(control, job, ON)
        assert "400 ms" in aside
        assert "target of 100 ms" in aside
        assert "50 ms" in on
        payload = events(control, job)[-1].payload
        assert payload is not None
        report = control.jobs.report()
        assert (report["running"], report["is_paused"], report["pauses"]) == (1, False, 1)
        assert report["paused_s"] == pytest.approx(payload["paused_s"], rel=0.4)
        await control.jobs.cancel(job.id)


async def test_it_ends_as_if_nothing_had_been(pausing: MakeControl, chats: Chats) -> None:
    async with running(pausing()) as control:
        job = await submit(control, {"emit": STARTED}, progress(1), {"sleep": 0.5}, *GOOD[1:])
        await until_told(control, job, "Step 1/10")
        chats.p90_s = 0.4
        await until(lambda: is_stopped(control, job))
        chats.p90_s = None
        await reach(control, job, "succeeded")
        assert "nobody chats" in told(control, job, ON)[0]


async def test_it_is_not_starved(pausing: MakeControl, chats: Chats) -> None:
    chats.p90_s = 0.4
    limits = {"training_pause_after_s": 0.2, "training_max_pause_s": 0.3}
    async with running(pausing(**limits)) as control:
        job = await submit(control, *[{"sleep": 0.1}] * 8, *GOOD)
        await reach(control, job, "succeeded")
        assert len(told(control, job, ASIDE)) > 1
        assert "0.3 s at a time" in told(control, job, ON)[0]


async def test_without_a_target_nothing_pauses(pausing: MakeControl, chats: Chats) -> None:
    chats.p90_s = 60.0
    async with running(pausing(training_ttft_target_ms=None)) as control:
        job = await submit(control, {"emit": STARTED}, {"sleep": 0.5}, *GOOD)
        await reach(control, job, "succeeded")
        assert told(control, job, ASIDE) == []


async def test_one_that_begins_meanwhile_stands_aside_too(
    pausing: MakeControl, chats: Chats
) -> None:
    async with running(pausing(max_running_jobs=2)) as control:
        first = await paused_job(control, chats)
        second = await submit(control, *ENDLESS, name="other")
        await until(lambda: is_stopped(control, second))
        await until_told(control, second, ASIDE)
        assert control.jobs.report()["pauses"] == 1
        chats.p90_s = 0.01
        await until_told(control, first, ON)
        await until_told(control, second, ON)
        for job in (first, second):
            await control.jobs.cancel(job.id)


async def test_one_that_publishes_does_not(pausing: MakeControl, chats: Chats) -> None:
    """It may hold the lock of the database: were it stopped, every write of ours would fail."""
    chats.p90_s = 0.4
    lines = ({"emit": STARTED}, {"publishing": 0.5}, {"publish": True})
    limits = {"training_pause_after_s": 0.3, "training_max_pause_s": 600.0}
    async with running(pausing(**limits)) as control:
        job = await submit(control, *lines)
        await reach(control, job, "succeeded")


async def test_cancel_ends_a_job_that_stands_aside(pausing: MakeControl, chats: Chats) -> None:
    async with running(pausing()) as control:
        job = await paused_job(control, chats)
        began = time.monotonic()
        assert (await control.jobs.cancel(job.id)).status == "cancelled"
        assert time.monotonic() - began < 3  # of 5 that a deaf one gets
        assert not control.jobs.report()["is_paused"]


async def test_so_does_pausing_it_which_keeps_its_checkpoint(
    pausing: MakeControl, chats: Chats, home: Home
) -> None:
    async with running(pausing()) as control:
        job = await paused_job(control, chats)
        assert (await control.jobs.pause(job.id)).status == "paused"
        assert (home.jobs / job.id / "work" / "checkpoint-7").exists()


async def test_a_server_stop_checkpoints_what_stands_aside(
    pausing: MakeControl, chats: Chats, home: Home
) -> None:
    async with running(pausing()) as control:
        job = await paused_job(control, chats)
        began = time.monotonic()
    assert time.monotonic() - began < 3
    assert control.jobs.store.get(job.id).status == "interrupted"
    assert (home.jobs / job.id / "work" / "checkpoint-7").exists()


async def test_what_a_dead_server_left_standing_is_settled_by_the_next(
    pausing: MakeControl, make_control: MakeControl, chats: Chats, home: Home
) -> None:
    first = pausing()
    await first.start()
    job = await paused_job(first, chats)
    await die(first)
    assert is_stopped(first, job)
    began = time.monotonic()
    async with running(make_control()) as second:
        await reach(second, job, "interrupted")
        assert time.monotonic() - began < 3  # of 5 that a deaf one gets
        assert (home.jobs / job.id / "work" / "checkpoint-7").exists()


async def test_a_failing_database_does_not_end_the_pauses(
    pausing: MakeControl, chats: Chats, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OperationalError("insert", {}, Exception("disk I/O error"))

    async with running(pausing(max_running_jobs=2)) as control:
        jobs = [await submit(control, *ENDLESS, name=name) for name in ("one", "two")]
        for job in jobs:
            await until_told(control, job, "Step 1/10")
        with monkeypatch.context() as broken:
            broken.setattr(control.jobs.store, "add_event", fail)
            chats.p90_s = 0.4
            await until(lambda: all(is_stopped(control, job) for job in jobs))
            chats.p90_s = 0.01
            await until(lambda: not any(is_stopped(control, job) for job in jobs))
        chats.p90_s = 0.4
        await until_told(control, jobs[0], ASIDE)
        for job in jobs:
            await control.jobs.cancel(job.id)


async def test_a_failure_of_ours_leaves_the_next_look_to_decide(
    make_control: MakeControl, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Chats):
        is_broken = True

        def __call__(self, patience_s: float) -> float | None:
            if self.is_broken:
                raise ZeroDivisionError
            return self.p90_s

    chats = Broken(0.4)
    limits = {"training_ttft_target_ms": TARGET_MS, "training_pause_after_s": 0.0}
    async with running(make_control(chats, **limits)) as control:
        job = await submit(control, *ENDLESS)
        await until(lambda: "could not be settled" in caplog.text)
        chats.is_broken = False
        await until(lambda: is_stopped(control, job))
        await control.jobs.cancel(job.id)


def test_statistics_say_what_training_does(live: Any) -> None:
    stats = httpx.get(f"{live.url}/admin/stats").json()
    assert stats["training"] == {"running": 0, "is_paused": False, "pauses": 0, "paused_s": 0.0}
    text = httpx.get(f"{live.url}/metrics").text
    assert 'loraloop:training_paused_seconds_total{model_name="tiny-base"} 0.0' in text
    assert 'loraloop:training_is_paused{model_name="tiny-base"} 0.0' in text
