"""The clock is set while the server runs. What waits, orders or expires does not go by it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from artifacts.registry import Registry
from server.jobs import child
from server.jobs.states import RESUMABLE
from server.jobs.store import JobStore
from server.tables import FileRow, JobRow
from tests.faults.conftest import Site

HOUR = 3600.0
JUMPS = (HOUR, -HOUR, -30 * 365 * 24 * HOUR, 30 * 365 * 24 * HOUR)  # from where it was at first

Jump = Callable[[float], None]


@pytest.fixture
def jump(monkeypatch: pytest.MonkeyPatch) -> Jump:
    """Sets the clock of this process to so many seconds from the true time."""
    real, offset = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + offset[0])

    def set_clock(seconds: float) -> None:
        offset[0] = seconds

    return set_clock


def test_answers_windows_experiments_and_pages_go_on(site: Site, jump: Jump) -> None:
    arms = [{"model": "good@1", "weight": 1}, {"model": site.base, "weight": 1}]
    assert site.admin("PUT", "experiments/good", {"arms": arms}).status_code == 200
    users = [f"user-{number}" for number in range(8)]

    def met() -> list[str]:
        return [site.chat("good", user=user).headers["x-loraloop-arm"] for user in users]

    first, early = met(), site.chat("good@1")
    files = [site.upload().json()["id"]]
    with site.traffic(site.base, "good@1"):
        for count, seconds in enumerate(JUMPS, start=2):
            jump(seconds)
            assert met() == first
            assert site.score(early).status_code == 200
            assert site.score(site.chat("good@1")).status_code == 200
            assert site.admin("PUT", "experiments/good", {"arms": arms}).status_code == 200
            assert site.admin("POST", "adapters/load", {"id": "good@1"}).status_code == 201
            files.append(site.upload().json()["id"])
            listed = site.http.get("/v1/files?order=asc").json()["data"]
            assert [file["id"] for file in listed] == files
            window = site.admin("GET", "stats?window=60").json()["arms"]
            answered = sum(arm["requests"] for arm in window.values())
            assert answered == len(users) * count, "all within this minute"
    trail = [entry["id"] for entry in site.admin("GET", "audit?limit=100").json()["data"]]
    assert trail == sorted(trail, reverse=True)
    assert site.http.get("/health/ready").json()["problems"] == []


@pytest.mark.parametrize("seconds", JUMPS)
def test_jobs_keep_their_order(registry: Registry, jump: Jump, seconds: float) -> None:
    store = JobStore(registry.database)
    with registry.database.session() as session:
        facts: dict[str, Any] = {"filename": "a", "suffix": ".jsonl", "purpose": "fine-tune"}
        session.add(FileRow(id="f", num_bytes=1, sha256="", created_at=0, **facts))

    def new() -> str:
        job = JobRow(name="shop", model="tiny", training_file="f", seed=1)
        job.hyperparameters = job.settings = {}
        return store.create(job).id

    first, second = new(), new()
    store.move(first, "paused", "The job was paused.", only_from=("queued",))
    jump(seconds)
    third = new()
    store.move(first, "queued", "The job was resumed.", only_from=RESUMABLE)
    assert [job.id for job in store.in_status(("queued",))] == [second, third, first]


@pytest.mark.parametrize("seconds", [HOUR, -HOUR])
def test_a_child_of_a_former_server_is_known_by_more_than_the_clock(
    monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    """Linux counts a process's start from its own; Unix seconds of it move with the clock."""
    process = psutil.Process()
    recorded, shown = child.started_at(os.getpid()), process.create_time()
    assert recorded is not None
    boot_time = psutil._pslinux.boot_time
    monkeypatch.setattr(psutil._pslinux, "boot_time", lambda: boot_time() + seconds)
    assert abs(psutil.Process().create_time() - shown - seconds) < 2
    assert child._is_same(os.getpid(), recorded)
    assert not child._is_same(os.getpid(), recorded + 5)
    found = child.find_by_argument(process.cmdline()[0])
    assert found is not None
