"""A job that takes more memory than it may: ended, with both numbers; nobody else notices."""

from __future__ import annotations

import time

import psutil
import pytest

from artifacts.home import Home
from server.jobs.memory import limit_bytes, over_limit
from tests.server.control.conftest import MakeControl, running
from tests.server.control.scripts import GOOD, STARTED, left_of, reach, submit, until

LIMIT = 120_000_000


@pytest.mark.parametrize("who", ["take_memory", "child_takes_memory"])
async def test_a_job_over_its_limit_fails_with_both_numbers(
    make_control: MakeControl, home: Home, who: str
) -> None:
    async with running(make_control(training_memory_bytes=LIMIT)) as control:
        job = await submit(control, {"emit": STARTED}, {"checkpoint": 3}, {who: 200_000_000})
        pid = (await reach(control, job, "running")).pid
        assert pid is not None
        began = time.monotonic()
        failed = await reach(control, job, "failed")
        assert time.monotonic() - began < 10
        assert failed.error is not None
        assert failed.error["code"] == "out_of_memory"
        assert "the limit is 120 MB" in failed.error["message"]
        assert "LORALOOP_TRAINING_MEMORY_BYTES" in failed.error["message"]
        await until(lambda: not psutil.pid_exists(pid))
        assert left_of(home, job) == {"progress.jsonl", "train.log"}
        await reach(control, await submit(control, *GOOD), "succeeded")  # it stays below


async def test_a_limit_that_is_not_exceeded_is_not_felt(make_control: MakeControl) -> None:
    async with running(make_control(training_memory_bytes=LIMIT)) as control:
        job = await submit(control, {"emit": STARTED}, {"sleep": 0.7}, *GOOD)
        await reach(control, job, "succeeded")


def test_without_a_setting_it_is_most_of_what_is_free() -> None:
    assert limit_bytes(5) == 5
    limit = limit_bytes(None)
    assert 0 < limit < psutil.virtual_memory().total
    message = over_limit(2_000_000_000, 1_500_000_000, None).message
    assert "used 2,000 MB" in message
    assert "1,500 MB, 90% of what was free when it started" in message
