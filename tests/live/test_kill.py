"""SIGKILL at any moment loses nothing that a client was told.

A real server is killed at random moments of a mixed workload of administration, training and chats,
some of them while it starts; after each restart everybody compares. KILL_POINTS sets how often;
KILL_SEED which moments.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from artifacts.adapter import read_adapter
from artifacts.base import open_base
from artifacts.database import Database
from artifacts.home import Home
from artifacts.importing import _draft
from artifacts.registry import Registry
from server.jobs.states import ON_CHILD
from server.tables import FileRow, JobRow
from tests.conftest import PeftAdapter, TinyBase
from tests.live.actors import Actor, Experimenter, Importer, Rater, Trainer, Uploader
from tests.live.responder import Responder
from tests.live.zygote import Forked, Zygote

POINTS = int(os.environ.get("KILL_POINTS", "12"))
SEED = int(os.environ.get("KILL_SEED", "0"))
LONGEST_S = 0.5  # from the start of the workload to the kill
SETTLE_S = 20.0
QUICK_TRAINER = Path(__file__).with_name("quick_trainer.py")


@dataclass
class Place:
    """One home and what clients need: its registry, seen from this process, and PEFT folders."""

    home: Home
    registry: Registry
    base: Path
    folders: dict[str, Path]  # by content hash
    draft: dict[str, object]


@pytest.fixture
def place(tmp_path: Path, tiny_base: TinyBase, peft_adapter: PeftAdapter) -> Iterator[Place]:
    base = tiny_base("llama")
    home = Home.open(tmp_path / "home")
    database = Database(home.database_url)
    folders = {}
    for seed in range(3):
        folder = shutil.copytree(peft_adapter(base, rank=2, seed=seed), tmp_path / f"peft-{seed}")
        folders[read_adapter(folder).content_hash] = folder
    weights = read_adapter(next(iter(folders.values())))
    draft = _draft(weights, open_base(base), None).model_dump() | {"origin": "trained"}
    yield Place(home, Registry(home, database), base, folders, draft)
    database.close()


class Killer:
    """Starts the server, lets everybody work on it, kills it."""

    def __init__(self, zygote: Zygote, place: Place) -> None:
        self._zygote = zygote
        self._place = place
        self.left_in_tmp: set[Path] = set()
        self.left_jobs: dict[str, int | None] = {}

    def start(self) -> Forked:
        return self._zygote.start(
            self._place.home.root,
            *("--model", str(self._place.base), "--dtype", "float32"),
            trainer=QUICK_TRAINER,
            LORALOOP_ADAPTER_ROOT=str(self._place.home.root.parent),
            LORALOOP_TRAINING_STOP_GRACE_S="5",
        )

    def kill(self, server: Forked) -> None:
        server.signal(signal.SIGKILL)
        assert server.wait() == -signal.SIGKILL, server.said
        self.left_in_tmp = set(self._place.home.tmp.iterdir())
        with self._place.registry.database.reading() as session:
            running = session.query(JobRow).filter(JobRow.status.in_(ON_CHILD))
            self.left_jobs = {job.id: job.pid for job in running}


def work(url: str, actors: list[Actor], seed: int, seconds: float, kill: Callable[[], None]) -> int:
    """Everybody at once until the server is dead; how many requests it answered."""
    failures: list[BaseException] = []
    num_done = [0] * len(actors)

    def go_on(index: int, actor: Actor) -> None:
        rng = random.Random(f"{seed}/{index}")
        try:
            with httpx.Client(base_url=url, timeout=30) as http:
                while True:
                    actor.act(http, rng)
                    num_done[index] += 1
        except httpx.TransportError:
            pass  # killed, and the request with it
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=go_on, args=pair) for pair in enumerate(actors)]
    for thread in threads:
        thread.start()
    time.sleep(seconds)
    kill()
    for thread in threads:
        thread.join(30)
    assert not failures, failures
    assert not any(thread.is_alive() for thread in threads)
    return sum(num_done)


def eventually(is_so: Callable[[], object], what: object) -> None:
    """What a crash left is settled beside the new work; what it lost never comes back."""
    deadline = time.monotonic() + SETTLE_S
    while not is_so():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def check_home(place: Place, server: Forked, killer: Killer) -> None:
    """Rows and folders agree, every version is whole, nothing half-done is left."""
    home, registry = place.home, place.registry
    registry.database.check()

    def on_disk() -> set[str]:
        return {f"{path.parent.name}@{path.name}" for path in home.adapters.glob("*/*")}

    def agree() -> bool:
        marked = list(home.adapters.glob("*/*/.unpublished"))
        return not marked and on_disk() == {version.id for version in registry.list()}

    eventually(agree, "folders and rows disagree")
    for version in registry.list():
        registry.verify(version.name, version.version)
    with registry.database.reading() as session:
        files = {file.id + file.suffix for file in session.query(FileRow)}
    assert {path.name for path in home.files.iterdir()} == files
    eventually(lambda: not killer.left_in_tmp & set(home.tmp.iterdir()), "tmp was not cleared")
    eventually(lambda: orphans(home, server) == [], "a training process has no server")


def orphans(home: Home, server: Forked) -> list[int]:
    """Training processes of this home whose server is another one, or dead."""
    found = []
    for process in psutil.process_iter(["cmdline", "ppid"]):
        words = process.info["cmdline"] or ()
        if any(word.startswith(str(home.jobs)) for word in words):
            found += [process.pid] * (process.info["ppid"] != server.pid)
    return found


def settle(http: httpx.Client, killer: Killer) -> None:
    """Wait until what ran at the kill is no longer said to run there."""

    def is_settled(job_id: str, pid: int | None) -> bool:
        job = http.get(f"/v1/fine_tuning/jobs/{job_id}").json()["loraloop"]
        return job["status"] not in ON_CHILD or (pid is not None and job["pid"] not in (pid, None))

    for job_id, pid in killer.left_jobs.items():
        eventually(lambda j=job_id, p=pid: is_settled(j, p), f"{job_id} was not settled")  # type: ignore[misc]


def prepare(http: httpx.Client, place: Place) -> list[Actor]:
    """Two versions that stay, training data, and everybody who works."""
    for folder in list(place.folders.values())[:2]:
        body = {"name": "fixed", "path": str(folder)}
        assert http.post("/admin/adapters/load", json=body).is_success
    adapter = str(next(iter(place.folders.values())))
    order = {"steps": 12, "step_s": 0.02, "adapter": adapter, "draft": place.draft}
    form = {"file": ("train.jsonl", json.dumps(order))}
    stored = http.post("/v1/files", files=form, data={"purpose": "fine-tune"})
    arms = ["fixed@1", "fixed@2", "tiny-llama"]
    return [
        Importer("a", place.folders, place.registry),
        Importer("b", place.folders, place.registry),
        Experimenter(arms),
        Uploader(),
        Rater([*arms, "e1"][:3]),
        Responder(),
        Trainer(stored.json()["id"]),
    ]


@pytest.mark.timeout(600)
def test_nothing_that_was_acknowledged_is_lost(zygote: Zygote, place: Place) -> None:
    rng = random.Random(SEED)
    killer = Killer(zygote, place)
    actors: list[Actor] = []
    num_done = num_starts = 0
    began = time.monotonic()
    for point in range(POINTS + 1):
        server = killer.start()
        if point % 4 == 1:  # killed before it was ready
            time.sleep(rng.random() * 0.25)
            killer.kill(server)
            server = killer.start()
            num_starts += 1
        with httpx.Client(base_url=server.wait_ready(), timeout=30) as http:
            if not actors:
                actors = prepare(http, place)
            settle(http, killer)
            for actor in actors:
                actor.check(http, place.registry)
            check_home(place, server, killer)
            if point == POINTS:
                finish(http, actors)
                break
        url, moment = str(http.base_url), rng.random() * LONGEST_S
        num_done += work(url, actors, point, moment, lambda s=server: killer.kill(s))  # type: ignore[misc]
    server.signal(signal.SIGTERM)
    assert server.wait() == 0, server.said
    print(
        f"{POINTS} kills under work and {num_starts} during the start, {num_done} requests "
        f"answered, {time.monotonic() - began:.1f} s; jobs seen {actors[-1].num_seen}"  # type: ignore[attr-defined]
    )


def finish(http: httpx.Client, actors: list[Actor]) -> None:
    """Whatever was interrupted can be resumed, and succeeds."""
    trainer = actors[-1]
    assert isinstance(trainer, Trainer)
    for job_id in trainer.resume_all(http):
        job = f"/v1/fine_tuning/jobs/{job_id}"
        eventually(lambda url=job: http.get(url).json()["status"] == "succeeded", job_id)  # type: ignore[misc]
