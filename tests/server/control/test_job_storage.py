"""Jobs while the database is locked or the disk is full: they wait, and nothing of them is lost."""

from __future__ import annotations

import asyncio
import logging

import pytest

from artifacts.home import Home
from artifacts.registry import Registry
from server.jobs import patience
from tests.faults.storage import failing_disk, locked
from tests.server.control.conftest import MakeControl, running
from tests.server.control.scripts import (
    GOOD,
    STARTED,
    events,
    left_of,
    progress,
    reach,
    submit,
    until,
    until_told,
)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "RETRY_S", 0.05)


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.ERROR]


async def test_a_queued_job_outlasts_a_locked_database(
    make_control: MakeControl, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(make_control(max_running_jobs=0)) as control:
        job = await submit(control, *GOOD)
    async with running(make_control()) as control:
        with locked(registry.database):
            control.jobs._wake.set()
            await until(lambda: control.jobs._patience.trouble.reason is not None)
            await asyncio.sleep(0.5)  # several attempts
            assert control.jobs.store.get(job.id).status == "queued"
        await reach(control, job, "succeeded")
    [said] = complaints(caplog)
    assert said.startswith("jobs cannot be recorded; they wait for that: another process has held")


async def test_a_run_outlasts_a_locked_database(
    make_control: MakeControl, registry: Registry
) -> None:
    async with running(make_control()) as control:
        steps = ({"emit": STARTED}, progress(1), {"sleep": 0.3}, progress(10), {"sleep": 2})
        job = await submit(control, *steps, {"publish": True})
        await until_told(control, job, "Step 1/10")
        with locked(registry.database):
            await until(lambda: control.jobs._patience.trouble.reason is not None)
            await asyncio.sleep(0.5)
        done = await reach(control, job, "succeeded")
        assert (done.version, done.resumed) == (1, 0)
        told = [event.message for event in events(control, job)]
        assert sum("Step 10/10" in message for message in told) == 1
        registry.verify("shop", 1)


async def test_a_database_locked_when_a_run_ends_costs_no_version(
    make_control: MakeControl, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(make_control()) as control:
        load, gate = control.adapters.load, asyncio.Event()

        async def load_slowly(version: object) -> float:
            gate.set()
            await asyncio.sleep(0.2)
            return await load(version)  # type: ignore[arg-type]

        monkeypatch.setattr(control.adapters, "load", load_slowly)
        job = await submit(control, *GOOD)
        await asyncio.wait_for(gate.wait(), 15)
        with locked(registry.database):
            await until(lambda: control.jobs._patience.trouble.reason is not None)
            await asyncio.sleep(0.3)
        assert (await reach(control, job, "succeeded")).version == 1
        registry.verify("shop", 1)


async def test_a_full_disk_holds_a_job_back_until_there_is_space(
    make_control: MakeControl, home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(make_control()) as control:
        with failing_disk(home.jobs):
            job = await submit(control, *GOOD)
            await until(lambda: control.jobs._patience.trouble.reason is not None)
            await asyncio.sleep(0.2)
            assert control.jobs.store.get(job.id).status == "validating_files"
        await reach(control, job, "succeeded")
        [said] = complaints(caplog)
        assert f"no space is left to write {home.jobs / job.id}" in said


async def test_a_job_that_waits_for_space_can_be_cancelled(
    make_control: MakeControl, home: Home
) -> None:
    async with running(make_control()) as control:
        with failing_disk(home.jobs):
            job = await submit(control, *GOOD)
            await until(lambda: control.jobs._patience.trouble.reason is not None)
            cancelled = await asyncio.wait_for(control.jobs.cancel(job.id), 5)
        assert cancelled.status == "cancelled"
        assert left_of(home, job) == set()


async def test_a_run_whose_disk_fails_keeps_its_checkpoint_and_resumes(
    make_control: MakeControl, home: Home
) -> None:
    async with running(make_control()) as control:
        script = ({"emit": STARTED}, {"lose_storage": "no space is left"}, {"publish": True})
        job = await submit(control, *script)
        stopped = await reach(control, job, "interrupted")
        assert (home.jobs / job.id / "work" / "checkpoint-7").exists()
        assert stopped.error is None
        last = events(control, job)[-1].message
        assert last == (
            "The job was interrupted: no space is left. POST "
            f"/v1/fine_tuning/jobs/{job.id}/resume continues from its last checkpoint."
        )
        await control.jobs.resume(job.id)
        assert (await reach(control, job, "succeeded")).resumed == 1


async def test_a_server_stops_in_time_while_its_jobs_cannot_be_recorded(
    make_control: MakeControl, registry: Registry
) -> None:
    control = make_control()
    await control.start()
    job = await submit(control, {"emit": STARTED}, progress(1), {"sleep": 0.2}, progress(10))
    await until_told(control, job, "Step 1/10")
    with locked(registry.database):
        await until(lambda: control.jobs._patience.trouble.reason is not None)
        async with asyncio.timeout(8):
            await control.stop()
    async with running(make_control()) as control:
        await reach(control, job, "interrupted")
