"""The adapter version that a run continues from (``start_from``). Runs no model.

It decides rank, scaling and place of the new one; a key that says otherwise is refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from artifacts.base import Base
from artifacts.errors import AdapterRejected, InvalidName
from artifacts.manifest import ManifestDraft, read_manifest
from artifacts.names import parse_ref
from artifacts.registry import Registry
from training.combinations import MAX_RANK
from training.config import TrainingConfig
from training.errors import InvalidConfig

if TYPE_CHECKING:
    from artifacts.adapter import LoraWeights


@dataclass(frozen=True, slots=True)
class StartAdapter:
    """A version that has passed the server's own gate for this base."""

    id: str  # "name@3", or the folder's name
    folder: Path
    weights: LoraWeights


def open_start(config: TrainingConfig, registry: Registry, base: Base) -> StartAdapter | None:
    """What ``start_from`` names, None without it.

    Raises NotFound naming what exists, and InvalidConfig for an adapter of another base or chat
    template, one that cannot be read, and keys that contradict it.
    """
    if config.start_from is None:
        return None
    from artifacts.adapter import check_adapter, linear_shapes, read_adapter
    from artifacts.importing import check_manifest

    id_, folder, manifest = _locate(config.start_from, registry)
    try:
        weights = read_adapter(folder)
        check_adapter(weights, linear_shapes(base.config), max_rank=MAX_RANK)
        if manifest is not None:
            check_manifest(manifest, base, weights)
    except AdapterRejected as error:
        raise InvalidConfig(
            f"start_from={config.start_from} cannot be continued ({error.reason}): {error}",
            param="start_from",
        ) from error
    start = StartAdapter(id_, folder, weights)
    _refuse_contradictions(config, start)
    return start


def settled_by(config: TrainingConfig, start: StartAdapter | None) -> TrainingConfig:
    """``config`` with what the start adapter decides."""
    if start is None:
        return config
    weights = start.weights
    settled = {"rank": weights.rank, "alpha": weights.alpha,
               "target_modules": weights.target_modules,
               "use_rslora": bool(weights.config.get("use_rslora", False))}  # fmt: skip
    return config.model_copy(update=settled)


def _locate(given: str, registry: Registry) -> tuple[str, Path, ManifestDraft | None]:
    if Path(given).expanduser().is_dir():
        folder = Path(given).expanduser().resolve()
        return folder.name, folder, read_manifest(folder)
    try:
        version = registry.resolve(parse_ref(given))
    except InvalidName as error:
        raise InvalidConfig(
            f"start_from={given!r} is neither a folder here nor an adapter such as name@3; {error}",
            param="start_from",
        ) from error
    return version.id, version.path, version.manifest


def _refuse_contradictions(config: TrainingConfig, start: StartAdapter) -> None:
    settled = settled_by(config, start)
    for key in ("rank", "alpha", "target_modules", "use_rslora"):
        asked, found = getattr(config, key), getattr(settled, key)
        same = set(asked) == set(found) if key == "target_modules" else asked == found
        if key in config.model_fields_set and not same and asked != "all-linear":
            raise InvalidConfig(
                f"{key}={asked!r} contradicts start_from={start.id}, which has {found!r}; leave "
                f"{key} out",
                param=key,
            )
