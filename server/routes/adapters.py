"""/admin/adapters: what is registered and loaded; train, load, unload, aliases."""

from __future__ import annotations

import asyncio
import io
import json
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from pydantic import Field, model_validator

from artifacts.errors import NotFound
from artifacts.names import check_alias, check_name
from artifacts.registry import AdapterVersion
from server.adapter_gate import marks
from server.adapters import AdapterState
from server.audit import who
from server.auth import Caller
from server.deps import Admin, ServerDep
from server.errors import ApiError
from server.exports import refuse_training
from server.fields import StrictBody, Text, refuse
from server.files import StoredFile
from server.jobs.request import TrainAdapter, job_of_admin
from server.names import check_adapter_name
from server.places import AllowedPlaces
from server.resolve import resolve_fixed
from server.routes.fine_tuning import shown, start_of, submit_job
from server.routes.openapi import ERRORS, error
from server.state import Server

router = APIRouter(prefix="/admin/adapters", tags=["adapters"])

_NONE: dict[int | str, dict[str, Any]] = {404: error("No such adapter, version or alias.")}
_UNFIT = {**_NONE, 409: error("The version failed its gate.")}


class LoadBody(StrictBody):
    """Either ``id`` (a registered version), or ``name`` and ``path`` (a PEFT folder)."""

    id: Text | None = Field(None, min_length=1, max_length=512)
    name: Text | None = Field(None, max_length=256)
    path: Text | None = Field(None, min_length=1, max_length=4096)

    @model_validator(mode="after")
    def _one_form(self) -> LoadBody:
        if (self.id is None) == (self.name is None and self.path is None):
            message = "Give either id, or name and path."
            raise refuse("invalid_combination", message, "id")
        if self.id is None and (self.name is None or self.path is None):
            missing = "name" if self.name is None else "path"
            raise refuse("missing", f"{missing} is required beside the other one.", missing)
        return self


class UnloadBody(StrictBody):
    """``wait``: let running requests end first; otherwise they make it a 409."""

    id: Text = Field(min_length=1, max_length=512)
    wait: bool = True


class AliasBody(StrictBody):
    """``force``: also a version that failed its gate; the audit trail says who asked for it."""

    version: int = Field(ge=1, lt=10**9)
    force: bool = False


@router.get("", summary="List registered versions")
async def list_adapters(server: ServerDep, caller: Admin) -> dict[str, Any]:
    """Each with its aliases, metrics and whether it is in memory right now."""
    versions = await asyncio.to_thread(server.registry.list)
    names = sorted({version.name for version in versions})
    aliases = await asyncio.to_thread(lambda: {n: server.registry.aliases(n) for n in names})
    states = server.adapters.states(versions)
    pairs = zip(versions, states, strict=True)
    return {
        "object": "list",
        "data": [_view(version, aliases[version.name], state) for version, state in pairs],
        "aliases": aliases,
    }


@router.post("/train", summary="Train an adapter in one call", responses={400: ERRORS[400]})
async def train_adapter(body: TrainAdapter, server: ServerDep, caller: Admin) -> dict[str, Any]:
    """The same job as POST /v1/fine_tuning/jobs makes, from a file, a path or examples."""
    refuse_training(server.base)
    check_adapter_name(body.name, "name", server.base.id)
    if body.file_id is not None:
        return await _start(server, caller, body, body.file_id)
    stored = await asyncio.to_thread(_store_data, server, body)
    try:
        return await _start(server, caller, body, stored.id)
    except BaseException:
        await asyncio.to_thread(server.files.delete, stored.id)
        raise


@router.post("/load", summary="Load a version, or register and load a folder", status_code=201)
async def load_adapter(body: LoadBody, server: ServerDep, caller: Admin) -> dict[str, Any]:
    """Passes the load gate, then lies in memory; a folder that does not pass is not registered."""
    if body.id is not None:
        version = await asyncio.to_thread(_version, body.id, server)
        load_s = await server.adapters.load(version)
        await asyncio.to_thread(
            server.audit.record, who(caller), "adapter.load", version.id, load_s=load_s
        )
    else:
        assert body.name is not None
        assert body.path is not None
        version, load_s = await import_folder(server, caller, body.name, body.path)
    return {**await _described(version, server), "load_s": load_s}


async def import_folder(
    server: Server, caller: Caller, name: str, path: str, *, param: str = "name"
) -> tuple[AdapterVersion, float]:
    """The PEFT folder as the next version of ``name``, loaded, and the seconds that took.

    ``param`` is what the request calls the name. Raises InvalidInput, AdapterRejected, NotFound.
    """
    check_adapter_name(name, param, server.base.id)
    places = _places(server)
    folder = await asyncio.to_thread(places.find, path)
    version, load_s = await server.adapters.register(server.registry, name, folder, places.roots)
    await asyncio.to_thread(
        server.audit.record, who(caller), "adapter.import", version.id, load_s=load_s
    )
    return version, load_s


@router.post(
    "/unload",
    summary="Free a version's memory",
    responses={**_NONE, 409: error("Requests run on it.")},
)
async def unload_adapter(body: UnloadBody, server: ServerDep, caller: Admin) -> dict[str, Any]:
    """It stays registered: the next request for it loads it again."""
    version = await asyncio.to_thread(_version, body.id, server)
    await server.adapters.unload(version, wait=body.wait)
    await asyncio.to_thread(server.audit.record, who(caller), "adapter.unload", version.id)
    return await _described(version, server)


@router.get("/{name}/aliases", summary="List a name's aliases")
def list_aliases(name: str, server: ServerDep, caller: Admin) -> dict[str, Any]:
    return {"object": "list", "name": check_name(name), "data": server.registry.aliases(name)}


@router.get("/{name}/aliases/{alias}", summary="Describe an alias", responses=_NONE)
def get_alias(name: str, alias: str, server: ServerDep, caller: Admin) -> dict[str, Any]:
    target = server.registry.aliases(check_name(name)).get(check_alias(alias))
    if target is None:
        raise NotFound(f"There is no alias {name}@{alias}. GET /admin/adapters lists aliases.")
    return _alias(name, alias, target)


@router.put("/{name}/aliases/{alias}", summary="Point an alias at a version", responses=_UNFIT)
async def put_alias(
    name: str, alias: str, body: AliasBody, server: ServerDep, caller: Admin
) -> dict[str, Any]:
    """The version passes the load gate and is loaded before the alias moves."""
    check_alias(alias)
    version = await asyncio.to_thread(server.registry.get, name, body.version)
    label = f"{name}@{alias}"
    if not body.force:
        version.refuse_unfit(f"the alias {label}")
    load_s = await server.adapters.load(version)
    set_alias = partial(server.registry.set_alias, forced_by=who(caller) if body.force else None)
    before = await asyncio.to_thread(set_alias, name, alias, body.version)
    facts = {"version": body.version, "before": before}
    await asyncio.to_thread(server.audit.record, who(caller), "alias.put", label, **facts)
    return {**_alias(name, alias, body.version), "before": before, "load_s": load_s}


@router.delete("/{name}/aliases/{alias}", summary="Forget an alias", responses=_NONE)
def delete_alias(name: str, alias: str, server: ServerDep, caller: Admin) -> dict[str, Any]:
    server.registry.delete_alias(name, alias)
    server.audit.record(who(caller), "alias.delete", f"{name}@{alias}")
    return {"name": name, "alias": alias, "object": "alias", "deleted": True}


async def _start(server: Server, caller: Any, body: TrainAdapter, file_id: str) -> dict[str, Any]:
    start_from = None
    if body.start_from is not None:
        start_from = await start_of(body.start_from, server, "start_from")
    job = job_of_admin(body, file_id, server.base.id, server.engine.max_rank, start_from)
    return await shown(await submit_job(server, caller, job), server)


def _store_data(server: Server, body: TrainAdapter) -> StoredFile:
    """``path`` or ``examples`` as an uploaded file: a job's data never changes under it."""
    if body.path is not None:
        path = _places(server).find(body.path)
        if not path.is_file():
            raise ApiError(400, f"{path} is not a file.", param="path", code="invalid_value")
        with path.open("rb") as stream:
            return server.files.add(stream, path.name)
    lines = [json.dumps(example, ensure_ascii=False) for example in body.examples or []]
    text = "\n".join(lines).encode("utf-8", "surrogatepass")
    return server.files.add(io.BytesIO(text), f"{body.name}.jsonl")


def _places(server: Server) -> AllowedPlaces:
    root: Path | None = server.settings.adapter_root
    return AllowedPlaces(server.home.root, root)


def _version(model_id: str, server: Server) -> AdapterVersion:
    version = resolve_fixed(model_id, server.base.id, server.registry).version
    if version is None:
        message = f"{model_id!r} is the base, which is always loaded: name an adapter version."
        raise ApiError(400, message, param="id", code="invalid_value")
    return version


async def _described(version: AdapterVersion, server: Server) -> dict[str, Any]:
    aliases = await asyncio.to_thread(server.registry.aliases, version.name)
    return _view(version, aliases, server.adapters.states([version])[0])


def _view(version: AdapterVersion, aliases: dict[str, int], state: AdapterState) -> dict[str, Any]:
    manifest = version.manifest
    return {
        "id": version.id,
        "object": "adapter",
        "name": version.name,
        "version": version.version,
        "aliases": [alias for alias, number in aliases.items() if number == version.version],
        "content_hash": version.content_hash,
        "base": manifest.base_id,
        "origin": manifest.origin,
        "marks": marks(manifest),
        "rank": manifest.rank,
        "alpha": manifest.alpha,
        "target_modules": list(manifest.target_modules),
        "num_parameters": manifest.num_parameters,
        "bytes": manifest.num_bytes,
        "metrics": manifest.metrics,
        "gate": manifest.gate,
        "gates": [gate.model_dump() for gate in manifest.gates],
        "created_at": manifest.created_at,
        "state": {
            "loaded": state.is_loaded,
            "resident": state.is_resident,
            "running_requests": state.num_running,
            "resident_bytes": state.resident_bytes,
            "load_s": state.load_s,
        },
    }


def _alias(name: str, alias: str, version: int) -> dict[str, Any]:
    return {
        "name": name,
        "alias": alias,
        "object": "alias",
        "version": version,
        "id": f"{name}@{version}",
    }
