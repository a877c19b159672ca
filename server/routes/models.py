"""GET /v1/models: the base, every adapter name, every version."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from fastapi import APIRouter

from artifacts.catalog import AdapterVersion
from artifacts.errors import NotFound
from artifacts.names import AdapterRef
from server.deps import Infer, ServerDep
from server.exports import export_facts, is_offered
from server.resolve import find_fixed
from server.routes.openapi import ERRORS
from server.state import Server

router = APIRouter(prefix="/v1/models", tags=["inference"])


@router.get("", summary="List models")
async def list_models(server: ServerDep, caller: Infer) -> dict[str, Any]:
    """The base; each adapter of it by name (its champion, else its latest) and by version."""
    catalog = server.catalog.current
    entries = [_base_entry(server)]
    for name, versions in catalog.versions.items():
        with contextlib.suppress(NotFound):  # every version failed its gate: no name, only numbers
            named = catalog.resolve(AdapterRef(name))
            entries.extend(_adapter_entry(server, name, each) for each in _offered(server, [named]))
        entries.extend(_adapter_entry(server, v.id, v) for v in _offered(server, versions.values()))
    return {"object": "list", "data": entries}


@router.get("/{model:path}", summary="Describe a model", responses={404: ERRORS[404]})
async def retrieve_model(model: str, server: ServerDep, caller: Infer) -> dict[str, Any]:
    """Any id that a request may name: base, name, name@3, name@alias, base:name, ft:…"""
    target = await find_fixed(model, server.base.id, server.catalog)
    if target.version is None:
        return _base_entry(server)
    return _adapter_entry(server, model, target.version)


def _base_entry(server: Server) -> dict[str, Any]:
    return {
        "id": server.base.id,
        "object": "model",
        "created": int(server.lifecycle.started_at),
        "owned_by": "loraloop",
        "root": server.base.id,
        "parent": None,
        "max_model_len": server.engine.max_model_len,
        **export_facts(server.base),
    }


def _offered(server: Server, versions: Iterable[AdapterVersion]) -> list[AdapterVersion]:
    return [each for each in versions if is_offered(each.manifest, server.base)]


def _adapter_entry(server: Server, model_id: str, version: AdapterVersion) -> dict[str, Any]:
    created = datetime.fromisoformat(version.manifest.created_at)
    return {
        "id": model_id,
        "object": "model",
        "created": int(created.timestamp()),
        "owned_by": "loraloop",
        "root": version.id,
        "parent": server.base.id,
        "max_model_len": server.engine.max_model_len,
        "gate": version.manifest.gate,
    }
