"""GET /admin/stats and /metrics: first-token percentiles, peak memory, counts."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST

from server.deps import Admin, Infer, ServerDep
from server.exports import export_facts
from server.reporting.telemetry import MAX_WINDOW_S
from server.state import Server

router = APIRouter(tags=["operations"])

Window = Annotated[
    float | None,
    Query(gt=0, le=MAX_WINDOW_S, description="seconds; without it everything since start"),
]


@router.get("/admin/stats", summary="Speed, errors and memory per adapter and arm")
async def stats(server: ServerDep, caller: Admin, window: Window = None) -> dict[str, Any]:
    """TTFT is measured here, from receipt to first token. Percentiles are right to 1 %."""
    return {
        **server.telemetry.report(window),
        "memory": await asyncio.to_thread(_memory, server),
        "engine": _engine(server),
        "training": server.jobs.report(),
        "problems": {
            part: f"{trouble.what}: {trouble.reason}"
            for part, trouble in server.troubles.items()
            if trouble.reason is not None
        },
        "admission": server.admission.report(),
    }


@router.post("/admin/stats/reset", summary="Start the peaks anew")
async def reset(
    server: ServerDep, caller: Admin, scope: Literal["peaks", "all"] = "peaks"
) -> dict[str, Any]:
    """``peaks``: peak memory only. ``all``: percentiles and counts as well."""
    server.memory.reset()
    if scope == "all":
        server.telemetry.reset()
    return {"memory": await asyncio.to_thread(_memory, server)}


@router.get("/metrics", summary="The same for Prometheus", response_class=Response)
async def metrics(request: Request, server: ServerDep, caller: Infer) -> Response:
    """vLLM's metric names; ``model_name`` is the base or an adapter version."""
    text = request.app.state.metrics.render(_version_ids(server))
    return Response(text, media_type=CONTENT_TYPE_LATEST)


def _memory(server: Server) -> dict[str, Any]:
    stats, ids = server.engine.stats(), _version_ids(server)
    return {
        "rss_bytes": server.memory.rss_bytes(),
        "rss_peak_bytes": server.memory.rss_peak_bytes(),
        "torch_peak_bytes": server.memory.torch_peak_bytes(),
        "kv_bytes": stats.kv_bytes,
        "adapters": {ids.get(key, key): size for key, size in stats.resident_adapters.items()},
    }


def _version_ids(server: Server) -> dict[str, str]:
    return {version.content_hash: version.id for version in server.catalog.current.list()}


def _engine(server: Server) -> dict[str, Any]:
    stats = server.engine.stats()
    return {
        "kernels": server.engine.kernels,
        **export_facts(server.base),
        "running": stats.num_running,
        "waiting": stats.num_waiting,
        "kv_blocks_total": stats.kv_blocks_total,
        "kv_blocks_free": stats.kv_blocks_free,
        "known_adapters": len(server.engine.known_adapters()),
        "preemptions": stats.num_preemptions,
        "suspensions": stats.num_suspensions,
        "steps": stats.num_steps,
        "forward_passes": stats.num_forward_passes,
    }
