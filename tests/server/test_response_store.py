"""Stored responses: whose they are, how many, and what a crash or a failing database leaves."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine, event
from sqlalchemy.orm import Session

import server.tables  # noqa: F401  defines the table before create_tables
from artifacts.database import Database
from artifacts.errors import NotFound, StorageError, StorageFull
from server.answers.responses import store as module
from server.answers.responses.store import ChainTooLong, ResponseStore, StoredResponse
from server.app import create_app
from server.comparison.journal import AnswerJournal
from server.settings import Settings
from server.state import Server
from tests.server.conftest import serving
from tests.server.fakes import FakeEngine
from tests.server.responses import BASE, URL

Open = Callable[[], ResponseStore]


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(f"sqlite:///{tmp_path / 'registry.db'}")
    made.create_tables()
    yield made
    made.close()


@pytest.fixture
def opened(database: Database, tmp_path: Path) -> Open:
    """A store as the next process would open it."""
    return lambda: ResponseStore(database, AnswerJournal(tmp_path / "journal"), max_kept=5)


def stored(number: int, previous: int | None = None, owner: str = "a") -> StoredResponse:
    item = {"type": "message", "role": "user", "id": f"msg_{number}", "content": []}
    return StoredResponse(
        id=f"resp_{number}",
        owner=owner,
        previous_id=None if previous is None else f"resp_{previous}",
        input=json.dumps([item]),
        response=json.dumps({"id": f"resp_{number}", "status": "completed", "output": []}),
        created_at=1.0,
    )


@contextmanager
def failing(database: Database, error: StorageError) -> Iterator[None]:
    """Nothing can be written, nothing read."""

    def fail() -> Any:
        raise error

    whole = database.session, database.reading
    database.session = database.reading = fail  # type: ignore[method-assign]
    yield
    database.session, database.reading = whole  # type: ignore[method-assign]


def test_what_was_put_is_there_after_a_crash_flushed_or_not(opened: Open) -> None:
    store = opened()
    store.put(stored(1))
    store.flush()
    store.put(stored(2, previous=1))
    for _ in range(2):  # the second crash comes right after the start
        store = opened()
        assert [one.id for one in store.chain("resp_2", "a")] == ["resp_1", "resp_2"]
    store.flush()
    assert opened().get("resp_2", "a") == stored(2, previous=1)


def test_a_crash_between_database_and_journal_stores_nothing_twice(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened()
    store.put(stored(1))
    with monkeypatch.context() as patch:
        patch.setattr(AnswerJournal, "discard", lambda self, before: None)
        store.flush()
    again = opened()
    again.flush()
    assert again.get("resp_1", "a") == stored(1)
    again.delete("resp_1", "a")
    with pytest.raises(NotFound):
        opened().get("resp_1", "a")


def test_no_crash_brings_back_what_was_deleted(opened: Open, database: Database) -> None:
    store = opened()
    store.put(stored(1))
    store.delete("resp_1", "a")  # while only the journal had it
    with pytest.raises(NotFound):
        opened().get("resp_1", "a")
    store.put(stored(2))
    with failing(database, StorageFull("full")), pytest.raises(StorageFull):
        store.delete("resp_2", "a")
    assert store.get("resp_2", "a") == stored(2), "what could not be deleted is whole"


def test_the_journal_is_emptied_even_if_that_failed_before(
    opened: Open, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Else a deleted response would come back with the next start."""
    store = opened()
    store.put(stored(1))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        with pytest.raises(StorageError):
            store.flush()
    store.delete("resp_1", "a")
    assert not list((tmp_path / "journal").iterdir())


def refuse(*args: Any, **options: Any) -> None:
    raise OSError(5, "Input/output error")


def test_the_oldest_go(opened: Open) -> None:
    store = opened()
    for number in range(8):
        store.put(stored(number, previous=number - 1 if number else None))
        store.flush()
    assert store.get("resp_3", "a").id == "resp_3"
    for gone in (0, 1, 2):
        with pytest.raises(NotFound):
            store.get(f"resp_{gone}", "a")
    with pytest.raises(NotFound, match="resp_2"):
        store.chain("resp_7", "a")


def test_nobody_reads_deletes_or_goes_on_from_another_keys_response(opened: Open) -> None:
    store = opened()
    store.put(stored(1, owner="a"))
    for _ in range(2):
        for forbidden in (store.get, store.chain, store.delete):
            with pytest.raises(NotFound):
                forbidden("resp_1", "b")
        store.flush()
    assert store.get("resp_1", "a").owner == "a"


def test_a_chain_has_an_end(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened()
    for number in range(4):
        store.put(stored(number, previous=number - 1 if number else None))
    assert len(store.chain("resp_3", "a")) == 4
    with monkeypatch.context() as patch:
        patch.setattr(module, "MAX_CHAIN", 3)
        with pytest.raises(ChainTooLong):
            store.chain("resp_3", "a")
    monkeypatch.setattr(module, "MAX_CHAIN_BYTES", 3 * stored(0).num_bytes)
    with pytest.raises(ChainTooLong):
        store.chain("resp_3", "a")


WRITER = """
import sys
from pathlib import Path
from artifacts.database import Database
from server.answers.responses.store import ResponseStore
from server.comparison.journal import AnswerJournal
from tests.server.test_response_store import stored
import threading

home = Path(sys.argv[1])
database = Database(f"sqlite:///{home / 'registry.db'}")
database.create_tables()
store = ResponseStore(database, AnswerJournal(home / "journal"), max_kept=100_000)

def flush():
    while True:
        store.flush()

threading.Thread(target=flush, daemon=True).start()
number = 0
while True:
    store.put(stored(number, previous=number - 1 if number else None))
    print(number, flush=True)
    number += 1
"""


def test_a_killed_process_loses_nothing_that_it_had_acknowledged(tmp_path: Path) -> None:
    for delay_s in (0.0, 0.2):
        home = tmp_path / str(delay_s)
        home.mkdir()
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(home)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        told = [process.stdout.readline()]
        time.sleep(delay_s)
        os.kill(process.pid, signal.SIGKILL)
        told += process.stdout.readlines()
        process.wait()
        last = int([line for line in told if line.endswith("\n")][-1])
        database = Database(f"sqlite:///{home / 'registry.db'}")
        store = ResponseStore(database, AnswerJournal(home / "journal"), max_kept=100_000)
        store.flush()
        assert len(store.chain(f"resp_{min(last, 8000)}", "a")) == min(last, 8000) + 1
        assert store.get(f"resp_{last}", "a").id == f"resp_{last}"
        database.close()


# --- in a server ---


def ask(client: httpx.Client, key: str | None = None, **fields: Any) -> httpx.Response:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return client.post(URL, json={"model": BASE, "input": "hi", **fields}, headers=headers)


def test_each_key_has_responses_of_its_own(fake_server: Server) -> None:
    given: dict[str, Any] = {"api_keys": ("anna", "ben"), "admin_keys": ("root",)}
    fake_server.settings = Settings(home=fake_server.settings.home, **given)
    with (
        serving(create_app(fake_server)) as live,
        httpx.Client(base_url=live.url, timeout=20) as client,
    ):
        made = ask(client, "anna").json()["id"]
        place = f"{URL}/{made}"
        for key in ("ben", "root"):
            headers = {"Authorization": f"Bearer {key}"}
            assert client.get(place, headers=headers).status_code == 404
            assert client.get(f"{place}/input_items", headers=headers).status_code == 404
            assert client.post(f"{place}/cancel", headers=headers).status_code == 404
            assert client.delete(place, headers=headers).status_code == 404
            answer = ask(client, key, previous_response_id=made)
            assert answer.json()["error"]["code"] == "previous_response_not_found"
        assert client.get(place).status_code == 401
        assert client.get(place, headers={"Authorization": "Bearer anna"}).json()["id"] == made


def test_a_database_that_fails_holds_up_no_answer(
    client: httpx.Client, fake_server: Server
) -> None:
    with failing(fake_server.database, StorageFull("no space is left")):
        first = ask(client)
        assert first.json()["store"] is True
        with pytest.raises(StorageFull):
            fake_server.responses.flush()
        problems = client.get("/admin/stats").json()["problems"]
        assert "no space is left" in problems["responses"]
        made = first.json()["id"]
        assert client.get(f"{URL}/{made}").json() == first.json(), "memory has it"
    # What failed for a while is made up for, and nothing was lost.
    fake_server.responses.flush()
    assert "responses" not in client.get("/admin/stats").json()["problems"]
    assert ask(client, previous_response_id=made).status_code == 200
    again = ResponseStore(fake_server.database, AnswerJournal(fake_server.home.tmp), max_kept=9)
    assert again.get(made, "none").response == first.text


def test_a_database_that_is_locked_holds_up_no_answer(
    client: httpx.Client, fake_server: Server
) -> None:
    ask(client)
    fake_server.responses.flush()
    with sqlite3.connect(str(fake_server.database.url.database)) as other:
        other.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        first = ask(client).json()["id"]
        second = ask(client, previous_response_id=first)
        assert client.get(f"{URL}/{first}").status_code == 200
        assert time.monotonic() - began < 2
        assert second.status_code == 200
        other.rollback()


async def test_a_database_that_hangs_holds_only_who_goes_on_from_it(
    web: httpx.AsyncClient, fake_server: Server, engine: FakeEngine
) -> None:
    engine.max_model_len = 100_000
    may_go_on = threading.Event()

    @contextmanager
    def hang() -> Iterator[Any]:
        may_go_on.wait(20)
        with Session() as session:
            yield session

    fake_server.database.reading = hang  # type: ignore[method-assign]
    body = {"model": BASE, "input": "hi", "previous_response_id": "no_id"}
    waiting = [asyncio.create_task(web.post(URL, json=body)) for _ in range(40)]
    await asyncio.sleep(0.1)
    long = {"model": BASE, "input": "long " * 2000, "max_output_tokens": 2}
    async with asyncio.timeout(5):
        assert (await web.post(URL, json=long)).status_code == 200
    assert not any(task.done() for task in waiting)
    may_go_on.set()
    assert {answer.status_code for answer in await asyncio.gather(*waiting)} == {400}


def test_what_is_no_id_is_not_asked_of_the_database(opened: Open, database: Database) -> None:
    """PostgreSQL takes no NUL, and would say so with an error of ours."""
    statements: list[str] = []

    def note(*call: Any) -> None:
        statements.append(call[2])

    event.listen(Engine, "before_cursor_execute", note)
    for text in ("\0", "resp_\0", "resp_" + "x" * 100, "Robert'); --"):
        for ask_for in (opened().get, opened().chain, opened().delete):
            with pytest.raises(NotFound):
                ask_for(text, "a")
    event.remove(Engine, "before_cursor_execute", note)
    assert not [one for one in statements if "SELECT" in one]


def test_a_journal_that_cannot_be_written_is_said_and_the_answer_given(
    client: httpx.Client, fake_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(AnswerJournal, "append", refuse)
        made = ask(client)
    assert made.status_code == 200
    problems = client.get("/admin/stats").json()["problems"]
    assert "would not survive a crash" in problems["response_journal"]
    assert client.get(f"{URL}/{made.json()['id']}").status_code == 200
    assert ask(client).status_code == 200
    assert "response_journal" not in client.get("/admin/stats").json()["problems"]


def test_what_memory_cannot_hold_is_answered_and_honestly_not_stored(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_PENDING_BYTES", 10)
    made = ask(client).json()
    assert (made["status"], made["store"]) == ("completed", False)
    assert client.get(f"{URL}/{made['id']}").status_code == 404
