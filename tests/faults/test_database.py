"""The database is locked, hangs, is read-only or damaged: chats never ask it, so they go on."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import pytest
from sqlalchemy import text

from artifacts.catalog import Catalog
from artifacts.database import Database
from artifacts.errors import StorageError, StorageFull
from artifacts.home import Home
from artifacts.registry import Registry, VersionRow
from server.assembly import build_server
from server.settings import Settings
from tests.conftest import TinyBase
from tests.faults import storage
from tests.faults.conftest import Site, error_of
from tests.faults.storage import checkpoint, garble, locked, read_only_database
from tests.server.conftest import wait_until


def every_write(site: Site) -> dict[str, httpx.Response]:
    """What an operator or client may want stored."""
    body = {"arms": [{"model": "good@1", "weight": 1}, {"model": site.base, "weight": 1}]}
    return {
        "alias": site.admin("PUT", "adapters/good/aliases/canary", {"version": 1}),
        "experiment": site.admin("PUT", "experiments/good", body),
        "upload": site.upload(),
        "import": site.admin(
            "POST", "adapters/load", {"name": "new", "path": str(site.folders[3])}
        ),
        "score": site.score(site.chat("good")),
    }


@pytest.fixture
def files(site: Site) -> Callable[[], set[Path]]:
    """All files but the database's and the journal's."""
    own = {site.home.root / "answers"}
    return lambda: {
        path
        for path in site.home.root.rglob("*")
        if path.is_file() and not own & {*path.parents} and "registry.db" not in path.name
    }


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (locked, (503, "storage_busy", "end that process (fuser names it), or try again")),
        (read_only_database, (507, "storage_read_only", "make it writable")),
    ],
)
def test_a_database_that_takes_no_write_refuses_writes_and_no_chat(
    site: Site,
    files: Callable[[], set[Path]],
    fault: Callable[[Database], AbstractContextManager[None]],
    said: tuple[int, str, str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    database, (status, code, remedy) = site.server.database, said
    before = files()
    with site.traffic(site.base, "good"), fault(database):
        for response in every_write(site).values():
            message = error_of(response, status, code)
            assert database.place in message
            assert remedy in message
        answer = site.chat("good@1")
        assert error_of(site.chat("never-heard-of"), 404, "model_not_found")
        assert files() == before
        wait_until(lambda: bool(site.http.get("/health/ready").json()["problems"]), 10)
        metrics = site.http.get("/metrics").text
        assert 'loraloop:storage_trouble{model_name="tiny-llama",part="answers"} 1.0' in metrics
    wait_until(lambda: not site.http.get("/health/ready").json()["problems"], 10)
    assert {response.status_code for response in every_write(site).values()} <= {200, 201}
    assert site.score(answer).status_code == 200
    logged = [each.getMessage() for each in caplog.records if each.levelno == logging.ERROR]
    assert sum(each.startswith("answers cannot be recorded") for each in logged) == 1


def test_a_crowd_that_waits_for_a_lock_holds_up_no_long_prompt(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long prompts are tokenised in a thread, and who waits for the database waits in one too."""
    monkeypatch.setattr(storage, "BUSY_MS", 3_000)
    statuses: list[int] = []

    def put() -> None:
        response = site.admin("PUT", "adapters/good/aliases/canary", {"version": 1})
        statuses.append(response.status_code)

    crowd = [threading.Thread(target=put) for _ in range(12)]
    with locked(site.server.database):
        for thread in crowd:
            thread.start()
        time.sleep(0.3)  # all of them wait
        began = time.monotonic()
        long = [{"role": "user", "content": "word " * 1_000}]
        assert site.chat("good", messages=long).status_code == 200
        assert time.monotonic() - began < 2
        assert not statuses, "they were still waiting"
        for thread in crowd:
            thread.join(20)
    assert statuses == [503] * 12


def test_a_registry_that_hangs_holds_only_who_must_ask_it(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a network disk does whose server is gone: no error, no end."""
    is_back = threading.Event()
    read = Registry.catalog

    def hang(registry: Registry) -> Catalog:
        is_back.wait(20)
        return read(registry)

    answers: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: answers.append(site.chat("never-heard-of")))
    with site.traffic(site.base, "good"):
        monkeypatch.setattr(Registry, "catalog", hang)
        asking.start()
        time.sleep(0.7)  # the regular look hangs as well by now
        began = time.monotonic()
        assert site.chat("good@1").status_code == 200
        assert site.http.get("/v1/models").status_code == 200
        assert site.http.get("/metrics").status_code == 200
        assert time.monotonic() - began < 5
        assert not answers
        is_back.set()
        asking.join(20)
    error_of(answers[0], 404, "model_not_found")


def test_a_damaged_database_is_told_once_and_the_last_known_state_serves(
    site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    database = site.server.database
    site.admin("PUT", "adapters/good/aliases/canary", {"version": 1})
    checkpoint(database)
    shutil.copy(database.place, tmp_path / "copy.db")
    with site.traffic(site.base, "good"):
        garble(database)
        database.close()  # what its connections still remember is of no use here
        wait_until(lambda: site.server.catalog.trouble.reason is not None)
        for model in ("good", "good@1", "good@canary", "good@latest", site.base):
            assert site.chat(model).status_code == 200
        message = error_of(site.chat("never-heard-of"), 503, "storage_failed")
        assert f"{database.place} is damaged" in message
        error_of(
            site.admin("PUT", "adapters/good/aliases/canary", {"version": 1}), 503, "storage_failed"
        )
        assert [m["id"] for m in site.http.get("/v1/models").json()["data"]][1:] == [
            "good",
            "good@1",
        ]
        ready = site.http.get("/health/ready")
        assert ready.status_code == 200
        assert "the registry cannot be read; its last known state serves on" in ready.text
        assert database.place not in ready.text, "anybody may ask this"
        assert database.place in site.admin("GET", "stats").json()["problems"]["registry"]
        restore(tmp_path / "copy.db", database)
        wait_until(lambda: site.server.catalog.trouble.reason is None)
    assert site.admin("PUT", "adapters/good/aliases/canary", {"version": 1}).status_code == 200
    said = [each.getMessage() for each in caplog.records]
    assert sum(each.startswith("the registry cannot be read") for each in said) == 1
    assert sum("it works again: no longer the registry cannot" in each for each in said) == 1


def restore(copy: Path, database: Database) -> None:
    """As after a restart: no connection remembers the file that was there before."""
    for suffix in ("-wal", "-shm"):
        Path(database.place + suffix).unlink(missing_ok=True)
    copy.replace(database.place)
    database.close()


def test_one_unreadable_record_is_named_and_changes_nothing(site: Site) -> None:
    with site.traffic(site.base, "good"):
        with site.server.database.session() as session:
            session.get_one(VersionRow, ("good", 1)).content_hash = "0" * 64
            session.get_one(VersionRow, ("good", 1)).manifest = "\x00garbage"
        wait_until(lambda: site.server.catalog.trouble.reason is not None)
        assert "the record of good@1" in str(site.server.catalog.trouble.reason)
        assert site.chat("good").status_code == 200


@pytest.mark.parametrize("where", [0, 3])  # the header, and a page that the start may never need
def test_a_server_does_not_start_on_a_damaged_database(
    tiny_base: TinyBase, home: Home, where: int
) -> None:
    database = Database(home.database_url)
    Registry(home, database)
    checkpoint(database)
    database.close()
    path = Path(database.place)
    with path.open("r+b") as stream:
        stream.seek(4096 * where)
        stream.write(b"\xa5" * 4096)
    began = time.monotonic()
    with pytest.raises(StorageError, match=f"{path} is damaged .*restore it from a copy"):
        build_server(Settings(home=home.root, model=str(tiny_base("llama"))), home)
    assert time.monotonic() - began < 5


def test_a_full_database_says_so(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'x.db'}")

    def fill() -> None:
        with database.session() as session:
            session.execute(text("PRAGMA max_page_count = 2"))
            session.execute(text("CREATE TABLE t (x)"))
            session.execute(text("INSERT INTO t VALUES (zeroblob(100000))"))

    with pytest.raises(StorageFull, match=f"no space is left for the database {tmp_path}"):
        fill()
