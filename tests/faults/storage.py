"""Makes storage fail as it does in life, at the boundary of the system, inside a ``with`` block."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from weakref import WeakKeyDictionary

import pytest
from sqlalchemy import Engine, event

from artifacts.database import Database

BUSY_MS = 50  # instead of ten seconds, inside ``locked``


_faults: WeakKeyDictionary[Engine, list[str]] = WeakKeyDictionary()


@contextmanager
def _on_each_connection(database: Database, statement: str, undone_by: str) -> Iterator[None]:
    """Every transaction begun inside meets ``statement``."""
    engine = database._engine
    if engine not in _faults:  # never removed again: another thread may be calling it
        _faults[engine] = []
        event.listen(engine, "checkout", lambda c, *_: [c.execute(s) for s in _faults[engine]])
    _faults[engine] = [statement]
    try:
        yield
    finally:
        _faults[engine] = [undone_by]


@contextmanager
def locked(database: Database) -> Iterator[None]:
    """Another process holds the database for itself."""
    with _on_each_connection(
        database, f"PRAGMA busy_timeout = {BUSY_MS}", "PRAGMA busy_timeout = 10000"
    ):
        other = sqlite3.connect(database.place, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        try:
            yield
        finally:
            other.close()


@contextmanager
def read_only_database(database: Database) -> Iterator[None]:
    """SQLite says of every write what it says on a read-only disk (SQLITE_READONLY)."""
    with _on_each_connection(database, "PRAGMA query_only = ON", "PRAGMA query_only = OFF"):
        yield


@contextmanager
def failing_disk(below: Path, number: int = errno.ENOSPC) -> Iterator[None]:
    """What is written below a folder does not reach the disk: fsync says so, as full disks do."""
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if Path(os.readlink(f"/proc/self/fd/{descriptor}")).is_relative_to(below):
            raise OSError(number, os.strerror(number))
        real(descriptor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        yield


def checkpoint(database: Database) -> None:
    """All of the database in its one file."""
    with contextlib.closing(sqlite3.connect(database.place)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def garble(database: Database) -> None:
    """Overwrite the file and its log in place, as a failing disk or a wrong ``dd`` does."""
    for suffix in ("", "-wal"):
        path = Path(database.place + suffix)
        with path.open("r+b") as stream:
            stream.write(b"\xa5" * path.stat().st_size)
