"""One export from what was asked to a folder: open base and adapter, merge, compare, publish."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from artifacts.database import Database
from artifacts.errors import InvalidInput, InvalidName
from artifacts.home import Home
from artifacts.manifest import ManifestDraft, read_manifest
from artifacts.names import parse_ref
from artifacts.registry import Registry

MAX_RANK = 256  # as training makes them at most


@dataclass(frozen=True, slots=True)
class Asked:
    """What to export: ``adapter`` is ``name@version`` or a PEFT folder, ``base`` as for serving."""

    adapter: str
    output: Path
    base: str | None = None
    shard_gb: float = 5.0
    is_verified: bool = True


def export_merged(asked: Asked, on_tensor: Callable[[int, int], None]) -> dict[str, Any]:
    """Merges and compares; returns what is known of the result.

    Raises NotFound, InvalidInput, AdapterRejected for another base or template, Conflict, Corrupt
    and StorageError; then there is no output.
    """
    from artifacts.adapter import check_adapter, read_adapter
    from artifacts.architecture import linear_shapes
    from artifacts.base import open_base
    from artifacts.importing import check_manifest
    from export.merge import GB, Merge, merge_adapter
    from export.verify import compare

    if not asked.shard_gb > 0:
        raise InvalidInput(f"shard_gb={asked.shard_gb:g} must be above 0", param="shard_gb")
    adapter_id, folder, manifest = _locate(asked)
    base = open_base(asked.base)
    weights = read_adapter(folder)
    check_adapter(weights, linear_shapes(base.config), max_rank=MAX_RANK)
    if manifest is not None:
        check_manifest(manifest, base, weights)

    def check(merged: Path) -> dict[str, Any]:
        return asdict(compare(base, folder, merged)) if asked.is_verified else {}

    shard_bytes = int(asked.shard_gb * GB)
    output = asked.output.expanduser().resolve()
    merge = Merge(base, weights, adapter_id, output, shard_bytes)
    return {"adapter": adapter_id, "base": base.id, **merge_adapter(merge, on_tensor, check)}


def _locate(asked: Asked) -> tuple[str, Path, ManifestDraft | None]:
    folder = Path(asked.adapter).expanduser()
    if folder.is_dir():
        return folder.name, folder.resolve(), read_manifest(folder)
    try:
        ref = parse_ref(asked.adapter)
    except InvalidName as error:
        raise InvalidInput(
            f"{asked.adapter!r} is neither a folder here nor an adapter such as name@3; {error}",
            param="adapter",
        ) from error
    home = Home.open()
    database = Database(home.database_url)
    try:
        version = Registry(home, database).resolve(ref)
    finally:
        database.close()
    return version.id, version.path, version.manifest
