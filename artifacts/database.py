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
from sqlalchemy.exc import ArgumentError, DatabaseError
from sqlalchemy.orm import DeclarativeBase, Session
from sqlalchemy.pool import StaticPool

from artifacts.errors import InvalidInput

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
        except ArgumentError as error:
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
        """
        with Session(self._engine, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """One read-only view of a single moment; never waits for a writer."""
        with Session(self._reading, expire_on_commit=False) as session:
            yield session

    def create_tables(self) -> None:
        """Create whatever table is missing; two processes may do it at once.

        Raises InvalidInput if the database cannot be reached or is none.
        """
        try:
            with self._engine.begin() as connection:
                Table.metadata.create_all(connection)
        except DatabaseError as error:
            raise _unusable(
                f"the database {self.url.render_as_string()} cannot be used: {error.orig}; "
                "repair or restore it, or choose another place"
            ) from error

    def close(self) -> None:
        self._engine.dispose()


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
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _begin_sqlite(connection: Connection) -> None:
    is_reading = connection.get_execution_options().get(READ_ONLY, False)
    connection.exec_driver_sql("BEGIN" if is_reading else "BEGIN IMMEDIATE")


def _begin_postgres(connection: Connection) -> None:
    if not connection.get_execution_options().get(READ_ONLY, False):
        connection.execute(text(f"SELECT pg_advisory_xact_lock({POSTGRES_LOCK})"))
