"""The database behind registry and server: SQLite by default, PostgreSQL by URL.

All SQL that only one database understands stays in this file. Knows no table but the base class
that every table derives from.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import DeclarativeBase, Session
from sqlalchemy.pool import StaticPool

from artifacts.errors import (
    InvalidInput,
    StorageBusy,
    StorageError,
    StorageFull,
    StorageReadOnly,
)

BUSY_TIMEOUT_S = 10
READ_ONLY = "loraloop_read_only"
POSTGRES_LOCK = 0x10A10  # one advisory lock stands for "the writer", as SQLite's own does


class Table(DeclarativeBase):
    """Root of every table, the server's included."""


class Database:
    """Transactions on one database, safe from many threads and many processes."""

    def __init__(self, url: str) -> None:
        try:
            self.url = make_url(url)
            self._engine = _make_engine(self.url)
        except (ArgumentError, ValueError) as error:
            raise _unusable(
                f"{url.partition('@')[2] or url!r} is not a database URL; write "
                "sqlite:////path/registry.db or postgresql+psycopg://user@host/name"
            ) from error
        except ImportError as error:
            raise _unusable(
                f"the driver of {self.url.drivername} is not installed ({error.name}); install "
                "it with pip, or use SQLite"
            ) from error
        self._reading = self._engine.execution_options(**{READ_ONLY: True})

    @contextmanager
    def session(self) -> Iterator[Session]:
        """One writing transaction: commits at the end, rolls back on any exception.

        Writers follow one another (SQLite: BEGIN IMMEDIATE), so what is read here is still true
        when it is written. Waits up to 10 s for another writer. Objects stay readable afterwards.
        Raises StorageFull, StorageReadOnly, StorageBusy, StorageError; nothing is stored then.
        """
        with (
            self._storage_errors(),
            Session(self._engine, expire_on_commit=False) as session,
            session.begin(),
        ):
            yield session

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """One read-only view of a single moment; never waits for a writer.

        Raises StorageBusy, StorageError.
        """
        with self._storage_errors(), Session(self._reading, expire_on_commit=False) as session:
            yield session

    def create_tables(self) -> None:
        """Create whatever table is missing; two processes may do it at once.

        Raises InvalidInput if the database cannot be reached or is none, and what ``session``
        raises.
        """
        try:
            with self._storage_errors(), self._engine.begin() as connection:
                Table.metadata.create_all(connection)
        except DatabaseError as error:
            raise _unusable(
                f"the database {self.place} cannot be used: {error.orig}; repair or restore it, "
                "or choose another place"
            ) from error

    def check(self) -> None:
        """Read all of an SQLite file once. Raises StorageError if it is damaged."""
        if self.url.get_backend_name() != "sqlite":
            return
        with self.reading() as session:
            found = session.execute(text("PRAGMA quick_check(1)")).scalar_one()
        if found != "ok":
            raise StorageError(_damaged(self.place, " ".join(str(found).split())))

    @property
    def place(self) -> str:
        """The file, or the URL without its password."""
        if self.url.get_backend_name() == "sqlite" and self.url.database:
            return self.url.database
        return self.url.render_as_string()

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def _storage_errors(self) -> Iterator[None]:
        try:
            yield
        except PoolTimeout as error:
            raise StorageBusy(
                f"all connections to the database {self.place} are in use; try again"
            ) from error
        except DBAPIError as error:
            problem = _storage_error(error, self.place)
            if problem is None:
                raise
            raise problem from error


def _storage_error(error: DBAPIError, place: str) -> StorageError | None:
    """What a failed statement says about the storage; None if it says nothing about that."""
    if isinstance(error.orig, sqlite3.Error):
        # Absent where Python's module, not SQLite, complains.
        code = getattr(error.orig, "sqlite_errorcode", None)
        return None if code is None else _sqlite_error(code & 0xFF, error.orig, place)
    state = str(getattr(error.orig, "sqlstate", None) or "")
    if state == "53100":
        return StorageFull(f"no space is left for the database {place}; free some on its disk")
    if state == "25006":
        return StorageReadOnly(f"the database {place} is read-only; make it writable")
    if isinstance(error, OperationalError) and not state.startswith(("22", "23", "42")):
        return StorageError(f"the database {place} cannot be used now ({error.orig}); check it")
    return None


def _sqlite_error(code: int, error: sqlite3.Error, place: str) -> StorageError | None:
    """``code`` is a primary result code (https://sqlite.org/rescode.html)."""
    match code:
        case sqlite3.SQLITE_FULL:
            return StorageFull(f"no space is left for the database {place}; free some on its disk")
        case sqlite3.SQLITE_READONLY:
            return StorageReadOnly(f"the database {place} cannot be written; make it writable")
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return StorageBusy(
                f"another process has held the database {place} for over {BUSY_TIMEOUT_S} s; end "
                "that process (fuser names it), or try again"
            )
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return StorageError(_damaged(place, str(error)))
        case sqlite3.SQLITE_IOERR | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PROTOCOL:
            return StorageError(
                f"the database {place} cannot be used ({error}); check that its folder exists and "
                "its disk works"
            )
        case _:
            return None


def _damaged(place: str, reason: str) -> str:
    return (
        f"the database {place} is damaged ({reason}); stop the server and restore it from a copy, "
        "without the -wal and -shm files beside it"
    )


def _unusable(message: str) -> InvalidInput:
    return InvalidInput(message, param="LORALOOP_DATABASE_URL")


def _make_engine(url: URL) -> Engine:
    if url.get_backend_name() != "sqlite":
        engine = create_engine(url, pool_pre_ping=True)
        event.listen(engine, "begin", _begin_postgres)
        return engine
    if url.database in (None, "", ":memory:"):
        # Each connection to :memory: would be a database of its own.
        engine = create_engine(url, poolclass=StaticPool, connect_args={"check_same_thread": False})
    else:
        engine = create_engine(url)
    event.listen(engine, "connect", _connect_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _connect_sqlite(connection: sqlite3.Connection, record: Any) -> None:
    connection.isolation_level = None  # we say BEGIN ourselves; the driver's guess comes too late
    connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_S * 1000}")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA synchronous = FULL")
    _switch_to_wal(connection)


def _switch_to_wal(connection: sqlite3.Connection) -> None:
    """The switch needs the file for itself and does not honour busy_timeout, so wait here."""
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            is_busy = error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
            if not is_busy or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _begin_sqlite(connection: Connection) -> None:
    is_reading = connection.get_execution_options().get(READ_ONLY, False)
    connection.exec_driver_sql("BEGIN" if is_reading else "BEGIN IMMEDIATE")


def _begin_postgres(connection: Connection) -> None:
    if not connection.get_execution_options().get(READ_ONLY, False):
        connection.execute(text(f"SELECT pg_advisory_xact_lock({POSTGRES_LOCK})"))
