"""Liveness and readiness, for orchestrators. Open to everybody: they say nothing about anyone."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from server.deps import ServerDep
from server.exports import export_facts

router = APIRouter(prefix="/health", tags=["operations"])


@router.get("/live", summary="Is the process alive?")
async def live() -> dict[str, str]:
    """200 as long as the process can answer at all."""
    return {"status": "live"}


@router.get("/ready", summary="Does it take requests?", responses={503: {"description": "Not now"}})
async def ready(server: ServerDep) -> JSONResponse:
    """200, or 503 with the reason while starting, draining or broken.

    ``problems`` are what fails while answers go on; the log says why.
    """
    reason = server.lifecycle.reason_not_ready
    if reason is None and not server.engine.stats().is_healthy:
        reason = "the engine has failed"
    if reason is not None:
        return JSONResponse({"status": "not ready", "reason": reason}, 503, {"Retry-After": "2"})
    problems = [each.what for each in server.troubles.values() if each.reason is not None]
    facts = {"model": server.base.id, "problems": problems, **export_facts(server.base)}
    return JSONResponse({"status": "ready", **facts})
