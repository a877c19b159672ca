"""The FastAPI application: routers, error bodies, start and drain. No business of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import import_module
from importlib.util import find_spec

from fastapi import FastAPI

from server.errors import install_error_handlers
from server.middleware import BodyLimitMiddleware, RequestIdMiddleware
from server.prometheus import ServerMetrics
from server.state import Server

ROUTES = ("chat", "completions", "models", "health", "stats", "files", "fine_tuning", "admin")


def create_app(server: Server) -> FastAPI:
    """An app that serves ``server``; nothing is shared between two apps."""
    app = FastAPI(
        title="Loraloop",
        version="0.1.0",
        lifespan=_lifespan,
    )
    app.state.server = server
    app.state.metrics = ServerMetrics(server)
    install_error_handlers(app)
    app.add_middleware(BodyLimitMiddleware, settings=server.settings)
    app.add_middleware(RequestIdMiddleware)
    for name in ROUTES:
        if find_spec(f"server.routes.{name}"):
            app.include_router(import_module(f"server.routes.{name}").router)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    server: Server = app.state.server
    await asyncio.to_thread(server.engine.start)
    server.lifecycle.started_at = time.time()
    server.lifecycle.reason_not_ready = None
    try:
        yield
    finally:
        server.lifecycle.is_draining = True
        server.lifecycle.reason_not_ready = "draining"
        await asyncio.to_thread(server.engine.stop)
