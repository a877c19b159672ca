"""From the ``model`` of a request to the one adapter version, or the base, that answers it.

Knows the registry and the running experiments; no HTTP, no torch. What a request resolved to is
fixed from then on: a later alias move or re-weighting does not touch it. Asks memory, not the
disk (``server.live_catalog``).
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from artifacts.errors import InvalidName, NotFound
from artifacts.names import AdapterRef, parse_ref
from server.checkpoints import open_checkpoint
from server.names import parse_checkpoint_model_id, parse_fine_tuned_model_id

if TYPE_CHECKING:
    from artifacts.catalog import AdapterVersion
    from server.comparison.experiments import Experiments
    from server.live_catalog import LiveCatalog

BASE = "base"  # what the base is called where adapters are listed: headers, statistics


class Versions(Protocol):
    """A ``Catalog``, or the ``Registry`` itself, which reads the database."""

    def resolve(self, ref: AdapterRef) -> AdapterVersion: ...


class UnknownModel(NotFound):
    """The model id of a request means nothing here."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.param = "model"


@dataclass(frozen=True, slots=True)
class Target:
    """Who answers: ``version`` None is the base. ``arm`` is set while an experiment decides."""

    base_id: str
    version: AdapterVersion | None = None
    experiment: str | None = None
    arm: str | None = None

    @property
    def model_id(self) -> str:
        """The exact id that answers carry."""
        return self.base_id if self.version is None else self.version.id

    @property
    def adapter_id(self) -> str:
        """``name@3``, or ``base``."""
        return BASE if self.version is None else self.version.id

    @property
    def adapter_key(self) -> str | None:
        """The engine's key of the adapter."""
        return None if self.version is None else self.version.content_hash

    @property
    def arm_id(self) -> str | None:
        """``experiment/arm``, as statistics call it."""
        return None if self.experiment is None else f"{self.experiment}/{self.arm}"

    @property
    def headers(self) -> dict[str, str]:
        """Which version answered, and why."""
        headers = {"x-loraloop-adapter": self.adapter_id}
        if self.experiment is not None and self.arm is not None:
            headers["x-loraloop-experiment"] = self.experiment
            headers["x-loraloop-arm"] = _header_text(self.arm)
        return headers


async def find_target(
    model: str, subject: str | None, base_id: str, live: LiveCatalog, experiments: Experiments
) -> Target:
    """``resolve``, and for a name that is not known yet another look at the registry.

    Raises:
        UnknownModel: nothing has this id.
        StorageError: it is not known, and the registry cannot be read.
    """
    if (checkpoint := await _find_checkpoint(model, base_id, live)) is not None:
        return checkpoint
    try:
        return resolve(model, subject, base_id, live.current, experiments)
    except UnknownModel:
        await live.refresh()  # another process may have registered it a moment ago
        return resolve(model, subject, base_id, live.current, experiments)


def resolve(
    model: str, subject: str | None, base_id: str, versions: Versions, experiments: Experiments
) -> Target:
    """Who answers ``model``; a running experiment of a bare name decides by ``subject``.

    Raises:
        UnknownModel: nothing has this id.
    """
    if model == base_id:
        return Target(base_id)
    ref = _parse(model, base_id)
    if ref.version is None and ref.alias is None:
        arm = experiments.assign(ref.name, subject)
        if arm is not None:
            version = None if arm.model == base_id else _find(parse_ref(arm.model), versions, model)
            return Target(base_id, version, ref.name, arm.model)
    return Target(base_id, _find(ref, versions, model))


def resolve_fixed(model: str, base_id: str, versions: Versions) -> Target:
    """Who ``model`` means when no experiment decides: for listings and operators."""
    if model == base_id:
        return Target(base_id)
    return Target(base_id, _find(_parse(model, base_id), versions, model))


async def find_fixed(model: str, base_id: str, live: LiveCatalog) -> Target:
    """``resolve_fixed``, and for a name that is not known yet another look at the registry.

    Raises as ``find_target`` does.
    """
    if (checkpoint := await _find_checkpoint(model, base_id, live)) is not None:
        return checkpoint
    try:
        return resolve_fixed(model, base_id, live.current)
    except UnknownModel:
        await live.refresh()
        return resolve_fixed(model, base_id, live.current)


def fingerprint(base_fingerprint: str, target: Target) -> str:
    """OpenAI's ``system_fingerprint``: equal where base and adapter bytes are equal."""
    content = f"{base_fingerprint}\n{target.adapter_key or ''}"
    return "fp_" + hashlib.sha256(content.encode()).hexdigest()[:12]


async def _find_checkpoint(model: str, base_id: str, live: LiveCatalog) -> Target | None:
    """A job's checkpoint, which no catalog knows: its record is read from the disk."""
    wanted = parse_checkpoint_model_id(model)
    if wanted is None:
        return None
    if wanted.base_id != base_id:
        raise UnknownModel(_of_another_base(model, wanted.base_id, base_id))
    try:
        return Target(base_id, await asyncio.to_thread(open_checkpoint, live.jobs, wanted))
    except NotFound as error:
        raise UnknownModel(f"{_unknown(model)} ({error})") from None


def _parse(model: str, base_id: str) -> AdapterRef:
    """``name``, ``name@3``, ``name@alias``, ``base:name…`` or ``ft:…`` as a reference."""
    if fine_tuned := parse_fine_tuned_model_id(model):
        if fine_tuned.base_id != base_id:
            raise UnknownModel(_of_another_base(model, fine_tuned.base_id, base_id))
        return AdapterRef(fine_tuned.name, version=fine_tuned.version)
    name = model.removeprefix(base_id + ":")
    try:
        return parse_ref(name)
    except InvalidName:
        raise UnknownModel(_unknown(model)) from None


def _find(ref: AdapterRef, versions: Versions, model: str) -> AdapterVersion:
    try:
        return versions.resolve(ref)
    except NotFound as error:
        raise UnknownModel(f"{_unknown(model)} ({error})") from None


def _unknown(model: str) -> str:
    shown = model if len(model) <= 100 else model[:100] + "…"
    return f"The model {shown!r} does not exist; GET /v1/models lists those that do."


def _of_another_base(model: str, wanted: str, base_id: str) -> str:
    return f"The model {model!r} belongs to the base {wanted!r}, but this server runs {base_id!r}."


def _header_text(text: str) -> str:
    return text if text.isascii() and text.isprintable() else text.encode().hex()
