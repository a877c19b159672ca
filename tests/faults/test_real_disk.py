"""A disk that is really full, and a home that really cannot be written, under a server process."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.conftest import TinyBase
from tests.faults.confined import Confined, confined, refusal
from tests.faults.conftest import Client, error_of

REASON = refusal()
pytestmark = pytest.mark.skipif(REASON is not None, reason=f"no disk of its own: {REASON}")


@pytest.fixture(scope="module")
def place(
    tiny_base: TinyBase, folders: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Confined]:
    root = tmp_path_factory.mktemp("confined")
    with confined(tiny_base("llama"), root, folders[0].parent) as place:
        yield place


@pytest.fixture(scope="module")
def client(place: Confined, folders: list[Path], expected: dict[str, str]) -> Iterator[Client]:
    """With good@1 and spare@1 loaded."""
    with httpx.Client(base_url=place.url, timeout=60) as http:
        client = Client(place.url, http, "tiny-llama", expected)
        for number, name in enumerate(("good", "spare")):
            body = {"name": name, "path": str(folders[number])}
            assert client.admin("POST", "adapters/load", body).status_code == 201
        yield client


def refused(client: Client, folders: list[Path], code: str, has_database: bool) -> dict[str, str]:
    """What all says that must be stored. Each is a 507 which OpenAI's client does not repeat."""
    path = str(folders[2])
    arms = [{"model": "good@1", "weight": 1}, {"model": "spare@1", "weight": 1}]
    asked = {"upload": client.upload(b" " * 100_000 + b"{}")}
    asked["import"] = client.admin("POST", "adapters/load", {"name": "new", "path": path})
    if not has_database:
        put = client.admin("PUT", "adapters/good/aliases/canary", {"version": 1})
        asked["alias"] = put
        asked["experiment"] = client.admin("PUT", "experiments/good", {"arms": arms})
    for response in asked.values():
        assert response.headers["x-should-retry"] == "false"
    return {name: error_of(response, 507, code) for name, response in asked.items()}


def test_a_full_disk_refuses_what_must_be_stored_and_nothing_else(
    place: Confined, client: Client, folders: list[Path]
) -> None:
    file = client.upload().json()["id"]
    before = place.tree()
    with client.traffic(client.base, "good"), place.full():
        said = refused(client, folders, "storage_full", has_database=False)
        home = place.disk / "home"
        assert str(home / "files") in said["upload"]
        assert str(home / "tmp") in said["import"]
        assert str(home / "registry.db") in said["alias"]
        assert all("free some on its disk" in message for message in said.values())
        job = {"model": client.base, "training_file": file, "suffix": "late"}
        error_of(client.http.post("/v1/fine_tuning/jobs", json=job), 507, "storage_full")
        answer = client.chat("good")
        assert answer.status_code == 200
        error_of(client.score(answer), 507, "storage_full")
        unload = client.admin("POST", "adapters/unload", {"id": "spare@1"})
        assert unload.status_code == 200, "it needs no disk; its entry in the trail waits"
        assert place.tree() == before
        ready = client.http.get("/health/ready")
        assert ready.status_code == 200, "chats go on"
        assert any("answers cannot be recorded" in each for each in ready.json()["problems"])
    log = place.log.read_text()
    assert '"action": "adapter.unload", "subject": "spare@1"' in log
    assert log.count("ERROR: answers cannot be recorded") == 1
    recovered(place, client, answer)
    trail = client.admin("GET", "audit?subject=spare@1").json()["data"]
    assert [entry["action"] for entry in trail] == ["adapter.unload", "adapter.import"]
    assert client.admin("GET", "experiments").json()["data"] == []


def test_a_home_that_cannot_be_written_stops_no_chat(
    place: Confined, client: Client, folders: list[Path]
) -> None:
    before = place.tree()
    with client.traffic(client.base, "good"), place.read_only():
        # Descriptors that are open stay writable, and the database's are; so files alone fail here.
        said = refused(client, folders, "storage_read_only", has_database=True)
        assert all("make its disk writable" in message for message in said.values())
        assert client.admin("POST", "adapters/unload", {"id": "good@1"}).status_code in (200, 409)
        answer = client.chat("good")
        assert answer.status_code == 200, "reading is allowed"
        assert place.tree() == before
    recovered(place, client, answer)


def recovered(place: Confined, client: Client, answer: httpx.Response) -> None:
    """All of it works again; an answer given meanwhile can be scored."""
    assert client.upload().status_code == 200
    deadline = time.monotonic() + 20
    while client.http.get("/health/ready").json()["problems"]:
        assert time.monotonic() < deadline, place.log.read_text()[-3000:]
        time.sleep(0.1)
    assert client.score(answer).status_code == 200
    assert client.admin("PUT", "adapters/good/aliases/canary", {"version": 1}).status_code == 200
