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

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError
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
        except ArgumentError as error:
            raise InvalidInput(
                f"{url!r} is not a database URL; write sqlite:////path/registry.db or "
                "postgresql+psycopg://user@host/name",
                param="LORALOOP_DATABASE_URL",
            ) from error
        self._engine = _make_engine(url)
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
        """Create whatever table is missing; two processes may do it at once."""
        with self._engine.begin() as connection:
            Table.metadata.create_all(connection)

    def close(self) -> None:
        self._engine.dispose()


def _make_engine(url: str) -> Engine:
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        engine = create_engine(url, pool_pre_ping=True)
        event.listen(engine, "begin", _begin_postgres)
        return engine
    if parsed.database in (None, "", ":memory:"):
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
