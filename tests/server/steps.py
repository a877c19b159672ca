"""A whole server on a tiny base whose engine takes a step only when a test says so."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from artifacts.home import Home
from server.app import create_app
from server.assembly import build_server
from server.engine.engine import Engine
from server.engine.scheduler import Chunk
from server.settings import Settings
from server.state import Server
from tests.server.conftest import Live, serving, wait_until


class Steps:
    """Stands before the runner: ``begun`` are the request ids of each step, held ones included."""

    def __init__(self, engine: Engine) -> None:
        runner: Any = engine._runner
        self._execute = runner.execute
        runner.execute = self._gated
        self._permits = threading.Semaphore(0)
        self._is_held = True
        self.pace_s = 0.0  # how long a step takes at least
        self.begun: list[set[str]] = []

    def _gated(self, chunks: Sequence[Chunk], places: Any) -> Any:
        self.begun.append({chunk.seq.request.request_id for chunk in chunks})
        if self._is_held:
            self._permits.acquire()
        time.sleep(self.pace_s)
        return self._execute(chunks, places)

    def let(self, number: int) -> None:
        """Let so many steps through, and wait until the one after them is held."""
        before = len(self.begun)
        self._permits.release(number)
        wait_until(lambda: len(self.begun) >= before + number)

    def release(self) -> None:
        """No step is held any more."""
        self._is_held = False
        self._permits.release()


@contextmanager
def stepping(base: Path, root: Path, **given: Any) -> Iterator[tuple[Live, Server, Steps]]:
    """``given`` are settings. Begins with the first step held."""
    values: dict[str, Any] = {"model": str(base), "kv_cache_tokens": 8192, "num_threads": 1}
    settings = Settings(home=root / "home", **{**values, **given})
    server = build_server(settings, Home.open(settings.home))
    assert isinstance(server.engine, Engine)
    steps = Steps(server.engine)
    with serving(create_app(server)) as live:
        try:
            yield live, server, steps
        finally:
            steps.release()
    server.database.close()
