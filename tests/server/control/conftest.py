"""A home and a database for every test; nothing is shared between tests."""

from __future__ import annotations

from pathlib import Path

import pytest

import server.tables  # noqa: F401  defines the server's tables before create_tables
from artifacts.database import Database
from artifacts.home import Home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.open(tmp_path / "home")


@pytest.fixture
def database(home: Home) -> Database:
    database = Database(f"sqlite:///{home.root / 'registry.db'}")
    database.create_tables()
    return database
