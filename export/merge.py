"""A base with an adapter merged into it, W + s·B·A: a folder that any transformers program loads.

One file of the result at a time is in memory, about twice over while it is written. Sums are taken
in float32 and rounded once, to the base's own number format. The folder appears under its name when
it is whole.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors.torch import save_file

from artifacts.adapter import LoraPair, LoraWeights
from artifacts.base import INDEX_FILE, Base, Checkpoint, tensor_files
from artifacts.errors import Conflict, NotFound, StorageFull
from artifacts.models import copy_without_weights
from artifacts.safe_write import publish_folder, write_json
from artifacts.storage import storage_errors
from artifacts.tensor_file import TensorEntry, TensorFile

GB = 10**9
RECORD_FILE = "export.json"
FILE_PATTERN = "model{suffix}.safetensors"
OnTensor = Callable[[int, int], None]  # tensors written, of how many


@dataclass(frozen=True, slots=True)
class Merge:
    """What is to be merged, and where to."""

    base: Base
    weights: LoraWeights  # checked against the base
    adapter_id: str
    output: Path
    shard_bytes: int = 5 * GB


def merge_adapter(
    merge: Merge, on_tensor: OnTensor, check: Callable[[Path], dict[str, Any]]
) -> dict[str, Any]:
    """Writes the merged model; ``check`` looks at the whole folder before it gets its name.

    What ``check`` finds is written beside it, and returned. Raises Conflict if ``output`` exists,
    StorageError, and what ``check`` raises; nothing is left then.
    """
    output = merge.output
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise Conflict(f"{output} exists already; remove it or choose another output")
    part = output.with_name(f".{output.name}.part")
    with storage_errors(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(part, ignore_errors=True)  # of an export that was killed
        part.mkdir()
    try:
        with storage_errors(output):
            copy_without_weights(merge.base, part)
            _write_weights(merge, part, on_tensor)
        facts = check(part)
        with storage_errors(output):
            write_json(part / RECORD_FILE, {**_record(merge), **facts})
            publish_folder(part, output)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return facts


def _record(merge: Merge) -> dict[str, Any]:
    return {
        "adapter": merge.adapter_id,
        "adapter_content_hash": merge.weights.content_hash,
        "base": merge.base.id,
        "base_fingerprint": merge.base.fingerprint,
        "format": "merged",
    }


def _write_weights(merge: Merge, folder: Path, on_tensor: OnTensor) -> None:
    entries = _entries(merge.base)
    _check_space(folder, sum(entry.end - entry.start for entry in entries.values()))
    split = split_state_dict_into_shards_factory(
        entries,
        get_storage_size=lambda entry: entry.end - entry.start,
        filename_pattern=FILE_PATTERN,
        max_shard_size=merge.shard_bytes,
    )
    checkpoint, pairs = Checkpoint(merge.base), dict(merge.weights.pairs)
    num_written = 0
    for filename, names in split.filename_to_tensors.items():
        tensors: dict[str, torch.Tensor] = {}
        for name in names:
            tensors[name] = _merged(checkpoint[name], pairs.pop(name.removesuffix(".weight"), None))
            num_written += 1
            on_tensor(num_written, len(entries))
        save_file(tensors, folder / filename, metadata={"format": "pt"})
    if pairs:
        raise NotFound(f"{merge.base.id} has no weight for {sorted(pairs)[0]}")
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_json(folder / INDEX_FILE, index)


def _entries(base: Base) -> dict[str, TensorEntry]:
    """Every tensor of the base by name, in the order of its files."""
    with ExitStack() as stack:
        files = [stack.enter_context(TensorFile(path)) for path in tensor_files(base.path)]
        return {name: entry for file in files for name, entry in file.entries.items()}


def _merged(weight: torch.Tensor, pair: LoraPair | None) -> torch.Tensor:
    if pair is None:
        return weight.clone()  # its own memory: a mapped page may go
    delta = pair.b.float() @ pair.a.float()  # [out, in]
    return (weight.float() + pair.scaling * delta).to(weight.dtype)


def _check_space(folder: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise StorageFull(
            f"the merged model takes {num_bytes / GB:.1f} GB, {folder.parent} has {free / GB:.1f} "
            "GB free; free some, or choose an output on another disk"
        )
