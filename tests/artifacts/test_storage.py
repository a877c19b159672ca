"""Home, atomic writes and the database: what a reader may rely on."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, mapped_column

from artifacts.database import Database, Table
from artifacts.errors import InvalidInput, StorageError
from artifacts.home import Home
from artifacts.safe_write import publish_folder, sha256_file, write_bytes, write_json


class CounterRow(Table):
    """A table of this test's own, as the server adds its own."""

    __tablename__ = "test_counters"
    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[int]


@pytest.fixture
def database(tmp_path: Path) -> Database:
    database = Database(f"sqlite:///{tmp_path / 'x.db'}")
    database.create_tables()
    return database


def test_home_is_the_argument_else_the_variable_else_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORALOOP_HOME", str(tmp_path / "variable"))
    monkeypatch.chdir(tmp_path)
    assert Home.open(tmp_path / "given").root == tmp_path / "given"
    assert Home.open().root == tmp_path / "variable"
    monkeypatch.delenv("LORALOOP_HOME")
    home = Home.open()
    assert home.root == tmp_path / ".loraloop"
    assert home.adapters.is_dir()
    assert home.database_url == f"sqlite:///{tmp_path}/.loraloop/registry.db"
    monkeypatch.setenv("LORALOOP_DATABASE_URL", "postgresql://there")
    assert home.database_url == "postgresql://there"


def test_a_home_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match="LORALOOP_HOME"):
        Home.open(tmp_path / "file")


def test_a_failed_write_keeps_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"b": 1, "a": "é"})
    assert json.loads(path.read_text()) == {"a": "é", "b": 1}

    def full(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        write_bytes(path, b"new")
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, float("nan"))
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.json"]
    assert json.loads(path.read_text())["b"] == 1


def test_publish_folder_never_replaces_a_filled_folder(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    with pytest.raises(OSError, match="not empty"):
        publish_folder(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old" / "file").read_text() == "old"
    publish_folder(tmp_path / "new", tmp_path / "deep" / "er")
    assert (tmp_path / "deep" / "er" / "file").read_text() == "new"


def test_sha256_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256_file(tmp_path / "x").startswith("ba7816bf8f01cfea414140de5dae2223")


def test_an_exception_rolls_the_transaction_back(database: Database) -> None:
    def fail() -> None:
        with database.session() as session:
            session.add(CounterRow(name="x", value=1))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    with database.reading() as session:
        assert session.get(CounterRow, "x") is None


def test_writers_follow_one_another(database: Database) -> None:
    """Reading and then writing from many threads loses no step (BEGIN IMMEDIATE)."""
    with database.session() as session:
        session.add(CounterRow(name="x", value=0))

    def count() -> None:
        for _ in range(10):
            with database.session() as session:
                row = session.get_one(CounterRow, "x")
                row.value += 1

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.reading() as session:
        assert session.get_one(CounterRow, "x").value == 40


def test_readers_do_not_wait_for_a_writer_and_see_one_moment(database: Database) -> None:
    with database.session() as writing:
        writing.add(CounterRow(name="x", value=1))
        writing.flush()
        with database.reading() as session:
            assert session.get(CounterRow, "x") is None


def test_sqlite_is_set_up_for_a_server(database: Database) -> None:
    with database.reading() as session:
        found = {
            key: session.execute(text(f"PRAGMA {key}")).scalar_one()
            for key in ("journal_mode", "foreign_keys", "busy_timeout", "synchronous")
        }
    assert found == {
        "journal_mode": "wal",
        "foreign_keys": 1,
        "busy_timeout": 10_000,
        "synchronous": 2,
    }


def test_constraints_hold(database: Database) -> None:
    for _ in range(2):
        database.create_tables()  # again is harmless
    with pytest.raises(IntegrityError), database.session() as session:
        session.execute(text("INSERT INTO adapter_aliases VALUES ('a', 'champion', 1)"))


def test_what_is_no_database_is_refused_with_the_remedy(tmp_path: Path) -> None:
    for url in ("registry.db", "nosuch://host/name"):
        with pytest.raises(InvalidInput, match="database URL"):
            Database(url)
    (tmp_path / "text.db").write_text("not a database, but longer than a header " * 9)
    for path, remedy in (
        (tmp_path / "text.db", "is damaged .*restore it from a copy"),
        (tmp_path / "none" / "x.db", "cannot be used .*check that its folder exists"),
    ):
        with pytest.raises(StorageError, match=f"{path} {remedy}"):
            Database(f"sqlite:///{path}").create_tables()


def test_a_missing_driver_is_named_and_no_password_shown() -> None:
    try:
        import psycopg  # type: ignore[import-not-found,unused-ignore]  # noqa: F401
    except ImportError:
        with pytest.raises(InvalidInput, match="psycopg") as caught:
            Database("postgresql+psycopg://user:secret@host/name")
        assert "secret" not in str(caught.value)
    else:
        pytest.skip("psycopg is installed")


def test_memory_database_is_one_database() -> None:
    database = Database("sqlite://")
    database.create_tables()
    with database.session() as session:
        session.add(CounterRow(name="x", value=os.getpid()))
    with database.reading() as session:
        assert session.get_one(CounterRow, "x").value == os.getpid()
