"""A job whose server is killed goes on where it was: with the real training process."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.conftest import TinyBase
from tests.live.zygote import Forked, Zygote

NUM_STEPS = 120
SAVE_STEPS = 5
TIMEOUT_S = 120.0


class Job:
    """The job as a client sees it, on one server after the other."""

    def __init__(self, id_: str) -> None:
        self._path = f"/v1/fine_tuning/jobs/{id_}"
        self.http = httpx.Client()

    def move_to(self, server: Forked) -> None:
        self.http.close()
        self.http = httpx.Client(base_url=server.wait_ready(), timeout=30)

    def get(self) -> dict[str, Any]:
        job: dict[str, Any] = self.http.get(self._path).json()["loraloop"]
        return job

    def resume(self) -> None:
        assert self.http.post(self._path + "/resume").is_success

    def starts(self) -> list[str | None]:
        """From which checkpoint each run went on, oldest first."""
        events = self.http.get(self._path + "/events?limit=1000&order=asc").json()["data"]
        told = [event for event in events if event["message"].startswith("Training started")]
        return [event["data"]["resumed_from"] for event in told]

    def until(self, status: str) -> dict[str, Any]:
        deadline = time.monotonic() + TIMEOUT_S
        while (job := self.get())["status"] != status:
            assert time.monotonic() < deadline, job
            assert job["status"] != "failed", self.http.get(self._path).json()["error"]
            time.sleep(0.05)
        return job

    def train_to_a_checkpoint(self) -> int:
        """Returns the training process's id."""
        deadline = time.monotonic() + TIMEOUT_S
        while not self.http.get(self._path + "/checkpoints").json()["data"]:
            assert time.monotonic() < deadline, self.get()
            time.sleep(0.05)
        return int(self.get()["pid"])


def create(http: httpx.Client) -> Job:
    rows = [
        {"instruction": f"Is item {i} in stock?", "output": f"Ahoy! Item {i} be in the hold."}
        for i in range(40)
    ]
    form = {"file": ("pirate.json", json.dumps(rows))}
    file = http.post("/v1/files", files=form, data={"purpose": "fine-tune"}).json()["id"]
    settings = {"max_steps": NUM_STEPS, "save_steps": SAVE_STEPS, "rank": 2, "batch_size": 4}
    body = {"model": "tiny-llama", "training_file": file, "suffix": "pirate", "loraloop": settings}
    return Job(http.post("/v1/fine_tuning/jobs", json=body).json()["id"])


def runs(pid: int) -> bool:
    with suppress(psutil.Error):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


@pytest.mark.timeout(300)
def test_a_job_goes_on_from_its_checkpoint_after_its_server_is_killed(
    zygote: Zygote, tiny_base: TinyBase, tmp_path: Path
) -> None:
    def start() -> Forked:
        base = ("--model", str(tiny_base("llama")), "--dtype", "float32")
        return zygote.start(tmp_path / "home", *base)

    server = start()
    with httpx.Client(base_url=server.wait_ready(), timeout=30) as http:
        job = create(http)
    job.move_to(server)
    pid = job.train_to_a_checkpoint()
    server.kill()

    server = start()
    job.move_to(server)
    job.until("interrupted")
    assert not runs(pid)
    job.resume()
    ended = job.until("succeeded")
    first, second = job.starts()
    assert first is None
    assert second is not None
    assert SAVE_STEPS <= int(second.removeprefix("checkpoint-")) < NUM_STEPS
    assert ended["resumed"] == 1
    assert ended["result"]["metrics"]["num_steps"] <= NUM_STEPS
    body = {"model": ended["adapter"], "prompt": "Is item 7 in stock?", "max_tokens": 4}
    assert job.http.post("/v1/completions", json=body).is_success
    job.http.close()
    server.kill()
