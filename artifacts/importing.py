"""Adapters made elsewhere: read, gate against a base, register. Runs no model."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from artifacts.adapter import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    LoraWeights,
    check_adapter,
    contained,
    find_weights,
    read_adapter,
)
from artifacts.adapter_config import read_config
from artifacts.architecture import linear_shapes
from artifacts.base import Base
from artifacts.errors import AdapterRejected, Corrupt, NotFound
from artifacts.manifest import (
    CARD_FILE,
    MANIFEST_FILE,
    AdapterManifest,
    ManifestDraft,
    read_manifest,
)
from artifacts.names import check_name
from artifacts.registry import AdapterVersion, Registry
from artifacts.scratch import scratch_folder

COPIED_FILES = (CONFIG_FILE, WEIGHTS_FILE, MANIFEST_FILE, CARD_FILE)


def import_adapter(
    registry: Registry,
    folder: Path,
    name: str,
    base: Base,
    *,
    max_rank: int,
    roots: Sequence[Path] | None = None,
) -> AdapterVersion:
    """Register a PEFT LoRA folder as the next version of ``name``; the folder stays as it is.

    A folder with our own manifest keeps its base fingerprint and template hash, which must be this
    base's; any other is marked by having neither. With ``roots``, folder and files must really lie
    below one of them. Raises InvalidName, NotFound, and AdapterRejected with the reasons of
    ``read_adapter`` and ``check_adapter``, or path_escape, unreadable_manifest, hash_mismatch,
    base_mismatch, template_mismatch, closed_base.
    """
    check_name(name)
    check_takes_adapters(base)
    if roots is not None:
        folder = contained(folder, roots)
    if not folder.is_dir():
        raise NotFound(f"there is no folder {folder}; give the folder that PEFT saved")
    with scratch_folder(registry.home.tmp, "import-") as scratch:
        _copy(folder, scratch, roots)  # what is checked is what is registered
        weights = read_adapter(scratch)
        check_adapter(weights, linear_shapes(base.config), max_rank=max_rank)
        manifest = _read_own_manifest(scratch)
        if manifest is not None:
            check_manifest(manifest, base, weights)
            (scratch / MANIFEST_FILE).unlink()
        return registry.publish(name, scratch, _draft(weights, base, manifest))


def check_takes_adapters(base: Base) -> None:
    """Raises AdapterRejected, closed_base, for an export that has its adapter inside."""
    if base.export is not None and not base.takes_adapters:
        raise AdapterRejected(
            "closed_base",
            f"{base.id} is an export ({base.export.format}) with its adapter "
            f"{base.export.adapter_id} inside and takes no others; serve its base "
            f"{base.export.base_id}, or export the form onnx-adapters",
        )


def check_manifest(manifest: ManifestDraft, base: Base, weights: LoraWeights) -> None:
    """Refuse weights that are not the manifest's, and another base or chat template than its own.

    Raises AdapterRejected: hash_mismatch, base_mismatch, template_mismatch.
    """
    if manifest.content_hash != weights.content_hash:
        raise AdapterRejected(
            "hash_mismatch",
            f"the weights are not the {manifest.content_hash[:12]}… of their {MANIFEST_FILE}; copy "
            "the adapter again, or delete the manifest to import it as made elsewhere",
        )
    if manifest.base_fingerprint not in (None, base.fingerprint):
        raise AdapterRejected(
            "base_mismatch",
            f"the adapter was trained on base {manifest.base_id!r} (fingerprint "
            f"{str(manifest.base_fingerprint)[:12]}…), this is {base.id!r} "
            f"({base.fingerprint[:12]}…); serve the base that it was trained on",
        )
    if manifest.template_hash not in (None, base.template_hash):
        raise AdapterRejected(
            "template_mismatch",
            f"the adapter was trained with chat template {str(manifest.template_hash)[:12]}…, "
            f"base {base.id!r} now has {str(base.template_hash)[:12]}…; restore the template or "
            "train again",
        )


def _copy(folder: Path, scratch: Path, roots: Sequence[Path] | None) -> None:
    read_config(folder)  # says what is missing before anything is copied
    find_weights(folder)
    for name in COPIED_FILES:
        source = folder / name
        if source.is_file():
            shutil.copyfile(source if roots is None else contained(source, roots), scratch / name)


def _read_own_manifest(folder: Path) -> AdapterManifest | None:
    try:
        return read_manifest(folder)
    except Corrupt as error:
        raise AdapterRejected("unreadable_manifest", str(error)) from error


def _draft(weights: LoraWeights, base: Base, manifest: AdapterManifest | None) -> ManifestDraft:
    config = weights.config
    declared = {key: config.get(key) for key in ("base_model_name_or_path", "peft_version")}
    settings = {key: value for key, value in declared.items() if value is not None}
    own = manifest.settings | {"imported_from": manifest.id} if manifest else settings
    return ManifestDraft(
        content_hash=weights.content_hash,
        base_id=base.id,
        base_fingerprint=manifest.base_fingerprint if manifest else None,
        template_hash=manifest.template_hash if manifest else None,
        data_hash=manifest.data_hash if manifest else None,
        origin="imported",
        rank=weights.rank,
        alpha=weights.alpha,
        target_modules=weights.target_modules,
        num_parameters=weights.num_parameters,
        num_bytes=weights.num_bytes,
        settings=own,
        metrics=manifest.metrics if manifest else {},
        gates=manifest.gates if manifest else (),
        evaluation=manifest.evaluation if manifest else None,
    )
