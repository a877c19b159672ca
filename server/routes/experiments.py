"""/admin/experiments: A/B splits behind a bare adapter name."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter
from pydantic import Field

from artifacts.audit import GATE_OVERRIDE
from server.audit import who
from server.comparison.experiments import MAX_ARMS, MAX_WEIGHT, Arm, Experiment
from server.deps import Admin, ServerDep
from server.fields import StrictBody, Text
from server.names import check_adapter_name
from server.resolve import Target, resolve_fixed
from server.routes.openapi import ERRORS, error
from server.state import Server

router = APIRouter(prefix="/admin/experiments", tags=["experiments"])

_NONE: dict[int | str, dict[str, Any]] = {404: error("No experiment of this name.")}
_REFUSED: dict[int | str, dict[str, Any]] = {
    400: ERRORS[400],
    409: error("An arm's version failed its gate."),
}


class ArmBody(StrictBody):
    """``model`` is any id that a request may name; it is stored as the version it means now."""

    model: Text = Field(min_length=1, max_length=512)
    weight: float = Field(gt=0, le=MAX_WEIGHT)


class ExperimentBody(StrictBody):
    """The arms; weights are relative to each other.

    ``force``: also versions that failed their gate; the audit trail says who asked for it.
    """

    arms: list[ArmBody] = Field(min_length=2, max_length=MAX_ARMS)
    force: bool = False


@router.put("/{name}", summary="Start or re-weight", responses=_REFUSED)
async def put_experiment(
    name: str, body: ExperimentBody, server: ServerDep, caller: Admin
) -> dict[str, Any]:
    """Every arm is loaded before the first request can meet it.

    Putting it again keeps every subject on its arm, but for those that the new weights must move.
    """
    check_adapter_name(name, "name", server.base.id)
    use = f"an arm of the experiment {name}"
    targets = [await _target(arm, server) for arm in body.arms]
    unfit = [each for target in targets if (each := target.version) and not each.is_fit]
    if unfit and not body.force:
        unfit[0].refuse_unfit(use)
    arms = [
        await _ready_arm(target, arm.weight, server)
        for target, arm in zip(targets, body.arms, strict=True)
    ]
    experiment = await asyncio.to_thread(server.experiments.put, name, arms)
    for version in unfit:
        await asyncio.to_thread(
            server.audit.record, who(caller), GATE_OVERRIDE, version.id, use=use
        )
    facts = {"arms": {arm.model: arm.weight for arm in arms}}
    await asyncio.to_thread(server.audit.record, who(caller), "experiment.put", name, **facts)
    return _view(experiment)


@router.get("", summary="List experiments")
async def list_experiments(server: ServerDep, caller: Admin) -> dict[str, Any]:
    return {"object": "list", "data": [_view(each) for each in server.experiments.all()]}


@router.get("/{name}", summary="Describe an experiment", responses=_NONE)
async def get_experiment(name: str, server: ServerDep, caller: Admin) -> dict[str, Any]:
    return _view(server.experiments.get(name))


@router.delete("/{name}", summary="End an experiment", responses=_NONE)
def delete_experiment(name: str, server: ServerDep, caller: Admin) -> dict[str, Any]:
    """The bare name means its champion again."""
    server.experiments.delete(name)
    server.audit.record(who(caller), "experiment.delete", name)
    return {"name": name, "object": "experiment", "deleted": True}


async def _target(body: ArmBody, server: Server) -> Target:
    return await asyncio.to_thread(resolve_fixed, body.model, server.base.id, server.registry)


async def _ready_arm(target: Target, weight: float, server: Server) -> Arm:
    if target.version is not None:
        await server.adapters.load(target.version)
    return Arm(target.model_id, weight)


def _view(experiment: Experiment) -> dict[str, Any]:
    return {
        "name": experiment.name,
        "object": "experiment",
        "arms": [
            {"model": arm.model, "weight": arm.weight, "share": experiment.share(arm.model)}
            for arm in experiment.arms
        ],
        "salt": experiment.salt,
        "created_at": int(experiment.created_at),
        "updated_at": int(experiment.updated_at),
    }
