"""vLLM's /v1/load_lora_adapter and /v1/unload_lora_adapter, for tools that speak to it.

Ours are versions: what is loaded again under its name is the next one, and nothing is changed in
place. /admin/adapters says and does more.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse
from pydantic import Field

from artifacts.errors import NotFound
from artifacts.names import CHAMPION, AdapterRef
from artifacts.registry import AdapterVersion
from server.audit import who
from server.deps import Admin, ServerDep
from server.fields import StrictBody, Text, neutral
from server.resolve import UnknownModel, resolve_fixed
from server.routes.adapters import import_folder
from server.routes.openapi import ERRORS, error
from server.state import Server

router = APIRouter(prefix="/v1", tags=["adapters"])

_UNLOAD: dict[int | str, dict[str, Any]] = {
    404: error("Nothing of this name is loaded."),
    409: error("Requests came meanwhile."),
}


class LoadLoraAdapter(StrictBody):
    """vLLM's body. ``lora_path`` is a PEFT folder on the server."""

    lora_name: Text = Field(max_length=256, description="the adapter's", examples=["support"])
    lora_path: Text = Field(
        min_length=1,
        max_length=4096,
        description="a PEFT folder on the server, under its home or LORALOOP_ADAPTER_ROOT",
        examples=["incoming/support"],
    )
    load_inplace: bool | None = Field(
        None, description="true: the name answers with this version from now on"
    )
    is_3d_lora_weight: Annotated[bool | None, neutral(False)] = None


class UnloadLoraAdapter(StrictBody):
    """vLLM's body. ``lora_name`` is a name, meaning all its versions, or one version."""

    lora_name: Text = Field(
        min_length=1,
        max_length=512,
        description="a name, meaning all its versions, or one version",
        examples=["support"],
    )
    lora_int_id: Annotated[int | None, neutral(because="lora_name alone says which")] = None


@router.post(
    "/load_lora_adapter",
    summary="Register and load a folder (vLLM)",
    response_class=PlainTextResponse,
    responses={400: ERRORS[400], 404: error("There is no such folder.")},
)
async def load_lora_adapter(
    body: LoadLoraAdapter, server: ServerDep, caller: Admin
) -> PlainTextResponse:
    """The folder becomes the next version of its name, if it passes the load gate, and is loaded.

    It must lie under the home or LORALOOP_ADAPTER_ROOT. A name that has a champion goes on meaning
    that, unless ``load_inplace`` makes the new version the champion.
    """
    version, _ = await import_folder(
        server, caller, body.lora_name, body.lora_path, param="lora_name"
    )
    if body.load_inplace:
        await _make_champion(server, caller, version)
    meant = await asyncio.to_thread(server.registry.resolve, AdapterRef(version.name))
    text = f"Success: LoRA adapter '{version.name}' added successfully as {version.id}."
    if meant.id != version.id:
        text += (
            f" '{version.name}' still means {meant.id}: send load_inplace: true, or move the alias."
        )
    return PlainTextResponse(text)


@router.post(
    "/unload_lora_adapter",
    summary="Free an adapter's memory (vLLM)",
    response_class=PlainTextResponse,
    responses={400: ERRORS[400], **_UNLOAD},
)
async def unload_lora_adapter(
    body: UnloadLoraAdapter, server: ServerDep, caller: Admin
) -> PlainTextResponse:
    """Running requests end first. It stays registered: the next request for it loads it again."""
    versions = await asyncio.to_thread(_versions, server, body.lora_name)
    states = server.adapters.states(versions)
    loaded = [each for each, state in zip(versions, states, strict=True) if state.is_loaded]
    if not loaded:
        raise NotFound(f"The LoRA adapter '{body.lora_name}' is registered but not loaded.")
    for version in loaded:
        await server.adapters.unload(version, wait=True)
        await asyncio.to_thread(server.audit.record, who(caller), "adapter.unload", version.id)
    names = ", ".join(version.id for version in loaded)
    text = f"Success: LoRA adapter '{body.lora_name}' removed successfully from memory ({names})."
    return PlainTextResponse(text)


def _versions(server: Server, name: str) -> list[AdapterVersion]:
    """All versions of a name, or the one that the text means. Raises UnknownModel."""
    if found := [version for version in server.registry.list() if version.name == name]:
        return found
    try:
        version = resolve_fixed(name, server.base.id, server.registry).version
    except UnknownModel as problem:
        problem.param = "lora_name"
        raise
    if version is None:
        raise NotFound(f"{name!r} is the base, which is always loaded: name an adapter.")
    return [version]


async def _make_champion(server: Server, caller: Any, version: AdapterVersion) -> None:
    set_alias = server.registry.set_alias
    before = await asyncio.to_thread(set_alias, version.name, CHAMPION, version.version)
    label, facts = f"{version.name}@{CHAMPION}", {"version": version.version, "before": before}
    await asyncio.to_thread(server.audit.record, who(caller), "alias.put", label, **facts)
