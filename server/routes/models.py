"""GET /v1/models: the base, every adapter name, every version."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from fastapi import APIRouter

from artifacts.registry import AdapterVersion
from server.deps import Infer, ServerDep
from server.resolve import resolve_fixed
from server.routes.openapi import ERRORS
from server.state import Server

router = APIRouter(prefix="/v1/models", tags=["inference"])


@router.get("", summary="List models")
def list_models(server: ServerDep, caller: Infer) -> dict[str, Any]:
    """The base; each adapter by name (its champion, else its latest) and by version."""
    versions = server.registry.list()
    names = sorted({version.name for version in versions})
    entries = [_base_entry(server)]
    for name in names:
        own = [version for version in versions if version.name == name]
        champion = server.registry.aliases(name).get("champion")
        meant = next((v for v in own if v.version == champion), own[-1])
        entries.append(_adapter_entry(server, name, meant))
        entries.extend(_adapter_entry(server, version.id, version) for version in own)
    return {"object": "list", "data": entries}


@router.get("/{model:path}", summary="Describe a model", responses={404: ERRORS[404]})
def retrieve_model(model: str, server: ServerDep, caller: Infer) -> dict[str, Any]:
    """Any id that a request may name: base, name, name@3, name@alias, base:name, ft:…"""
    target = resolve_fixed(model, server.base.id, server.registry)
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
    }


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
    }
