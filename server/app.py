"""The FastAPI application: routers, error bodies, start and drain. No business of its own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from starlette.routing import Route

from server.document.build import document
from server.errors import install_error_handlers
from server.middleware import (
    BodyLimitMiddleware,
    KeyMiddleware,
    LastResort,
    RequestIdMiddleware,
    browser_rules,
)
from server.reporting.prometheus import ServerMetrics
from server.routes import (
    admin,
    chat,
    completions,
    embeddings,
    files,
    fine_tuning,
    health,
    lora,
    models,
    responses,
    stats,
    tokens,
)
from server.state import Server

NUM_WORKERS = 64  # threads
ROUTES = (
    chat,
    completions,
    responses,
    embeddings,
    tokens,
    models,
    files,
    fine_tuning,
    lora,
    admin,
    stats,
    health,
)


def create_app(server: Server) -> FastAPI:
    """An app that serves ``server``; nothing is shared between two apps."""
    app = FastAPI(
        title="Loraloop",
        version="0.1.0",
        lifespan=_lifespan,
        generate_unique_id_function=lambda route: route.name,
        redirect_slashes=False,  # to an absolute URL, which behind a proxy is somebody else's
    )
    app.state.server = server
    app.state.metrics = ServerMetrics(server)
    install_error_handlers(app)
    app.add_middleware(BodyLimitMiddleware, settings=server.settings)
    app.add_middleware(KeyMiddleware)
    app.add_middleware(LastResort)
    app.add_middleware(RequestIdMiddleware)
    if server.settings.allowed_origins:
        app.add_middleware(CORSMiddleware, **browser_rules(server.settings))
    for module in ROUTES:
        app.include_router(module.router)
    _describe(app, server)
    return app


def _describe(app: FastAPI, server: Server) -> None:
    """Replace FastAPI's document with ours. Making it takes half a second, so that is done in a
    thread: FastAPI's own route would hold up every stream."""
    app.openapi = partial(document, app, server.settings, server.base.id)  # type: ignore[method-assign]
    route = Route(str(app.openapi_url), lambda request: JSONResponse(app.openapi()))
    app.router.routes.insert(0, route)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Engine first, so that jobs found waiting can load what they make; the other way round at the
    end, so that they can still say how they ended."""
    server: Server = app.state.server
    # Most of them only ever wait. With Python's few, a locked database that held six operators'
    # requests held every long prompt too.
    workers = ThreadPoolExecutor(NUM_WORKERS, thread_name_prefix="worker")
    asyncio.get_running_loop().set_default_executor(workers)
    await asyncio.to_thread(server.engine.start)
    watching = asyncio.create_task(server.catalog.keep_fresh(), name="watch the registry")
    try:
        if server.control is not None:
            await server.control.start()
        for version in server.preload:
            await server.adapters.load(version)
        server.lifecycle.started_at = time.time()
        server.lifecycle.reason_not_ready = None
        yield
    finally:
        server.lifecycle.begin_drain()
        if server.control is not None:
            await server.control.stop()
        watching.cancel()
        await asyncio.to_thread(server.engine.stop)
