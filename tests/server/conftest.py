"""A whole HTTP server on a fake engine: in memory, or behind a real socket."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

import server.tables  # noqa: F401  defines the server's tables before create_tables
from artifacts.database import Database
from artifacts.home import Home
from artifacts.manifest import ManifestDraft
from artifacts.registry import AdapterVersion, Registry
from server.answers.responses.store import ResponseStore
from server.app import create_app
from server.audit import AuditLog
from server.comparison.experiments import Experiments
from server.comparison.feedback import Feedback
from server.comparison.journal import AnswerJournal
from server.connection import HttpProtocol, limit_connections
from server.main import bind
from server.reporting.telemetry import Telemetry
from server.settings import Settings
from server.state import Server
from tests.server.fakes import FakeAdapters, FakeBase, FakeEngine, FakeJobs, FakeRenderer

Publish = Callable[[str], AdapterVersion]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", port=0)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def fake_server(settings: Settings, engine: FakeEngine, tmp_path: Path) -> Iterator[Server]:
    """A Server without jobs and files, on a fresh home."""
    home = Home.open(settings.home)
    database = Database(f"sqlite:///{tmp_path / 'home' / 'registry.db'}")
    registry = Registry(home, database)
    yield Server(
        settings=settings,
        home=home,
        database=database,
        registry=registry,
        base=cast(Any, FakeBase()),
        renderer=cast(Any, FakeRenderer()),
        engine=engine,
        telemetry=Telemetry(),
        adapters=cast(Any, FakeAdapters(engine)),
        experiments=Experiments(database),
        feedback=Feedback(database, AnswerJournal(home.answers), max_answers=1000),
        files=cast(Any, None),
        jobs=cast(Any, FakeJobs()),
        audit=AuditLog(database),
        responses=ResponseStore(database, AnswerJournal(home.responses), max_kept=100),
    )
    database.close()


@pytest.fixture
def publish(fake_server: Server, tmp_path: Path) -> Publish:
    """Registers the next version of a name, with weights that nobody reads."""

    def publish_next(name: str) -> AdapterVersion:
        folder = tmp_path / f"{name}-{time.monotonic_ns()}"
        folder.mkdir()
        (folder / "adapter_config.json").write_text(json.dumps({"name": folder.name}))
        (folder / "adapter_model.safetensors").write_bytes(folder.name.encode())
        draft = ManifestDraft(
            content_hash=hashlib.sha256(folder.name.encode()).hexdigest(),
            base_id="tiny-base",
            origin="imported",
            rank=8,
            alpha=16.0,
            target_modules=("q_proj",),
            num_parameters=1,
            num_bytes=1,
        )
        return fake_server.registry.publish(name, folder, draft)

    return publish_next


@pytest.fixture
def app(fake_server: Server) -> FastAPI:
    return create_app(fake_server)


@pytest.fixture
async def web(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client in memory, seen by the server as one on its own machine. Collects streams whole."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        yield http


class Live:
    """A server behind a real socket, for clients that block and clients that leave."""

    def __init__(self, app: FastAPI) -> None:
        config = uvicorn.Config(
            app, http=HttpProtocol, log_level="error", timeout_graceful_shutdown=1
        )
        listener = bind("127.0.0.1", 0)
        limit_connections(listener, app.state.server.settings.stall_s)
        self.uvicorn = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.uvicorn.run, args=([listener],), daemon=True)

    @property
    def port(self) -> int:
        port: int = self.uvicorn.servers[0].sockets[0].getsockname()[1]
        return port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def serving(app: FastAPI) -> Iterator[Live]:
    live = Live(app)
    live.thread.start()
    deadline = time.monotonic() + 20
    while not live.uvicorn.started:
        assert time.monotonic() < deadline, "the server did not start"
        time.sleep(0.005)
    try:
        yield live
    finally:
        live.uvicorn.should_exit = True
        live.thread.join(10)


@pytest.fixture
def live(app: FastAPI) -> Iterator[Live]:
    with serving(app) as running:
        yield running


@pytest.fixture
def client(live: Live) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=live.url, timeout=20) as http:
        yield http


def wait_until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    """Fails if the condition does not come true in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.005)
