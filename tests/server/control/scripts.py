"""What the job tests share: scripts for the fake trainer, and waiting."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import Callable
from typing import Any

from artifacts.home import Home
from server.control import Control
from server.jobs.states import ENDED
from server.paging import Paging
from server.tables import JobEventRow, JobRow
from tests.server.control.conftest import steps

STARTED = {"event": "started", "num_train": 8, "num_validation": 1, "num_test": 1}
STARTED["total_steps"] = 10


def progress(step: int, total: int = 10) -> dict[str, Any]:
    return {"emit": {"event": "progress", "step": step, "total_steps": total, "loss": 1.5}}


GOOD = ({"emit": STARTED}, progress(5), progress(10), {"publish": True})
ENDLESS = ({"emit": STARTED}, {"checkpoint": 3}, {"wait": True})


async def submit(control: Control, *lines: dict[str, Any], name: str = "shop") -> JobRow:
    file = control.files.add(io.BytesIO(steps(*lines)), "data.jsonl")
    job = JobRow(
        name=name,
        model="tiny-base",
        training_file=file.id,
        hyperparameters={},
        settings={"epochs": 2},
        seed=5,
    )
    return await control.jobs.create(job)


async def reach(control: Control, job: JobRow, *statuses: str, timeout_s: float = 15) -> JobRow:
    deadline = time.monotonic() + timeout_s
    while (now := control.jobs.store.get(job.id)).status not in statuses:
        assert time.monotonic() < deadline, f"{now.status}: {now.error}"
        assert now.status not in ENDED, f"{now.status}: {now.error}"
        await asyncio.sleep(0.02)
    return now


async def until(condition: Callable[[], bool], timeout_s: float = 15) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        await asyncio.sleep(0.02)


async def until_told(control: Control, job: JobRow, text: str) -> None:
    await until(lambda: any(text in event.message for event in events(control, job)))


def events(control: Control, job: JobRow) -> list[JobEventRow]:
    return control.jobs.store.events(job.id, Paging(limit=1000, order="asc")).items


def left_of(home: Home, job: JobRow) -> set[str]:
    folder = home.jobs / job.id
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def child_facts(home: Home, job: JobRow) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((home.jobs / job.id / "work" / "env.json").read_text())
    return facts
