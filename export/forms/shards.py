"""safetensors files of at most a given size, written while their tensors are being made.

One file's tensors are in memory at a time, those that are mapped from a file not even that.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterable, Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from artifacts.base import INDEX_FILE
from artifacts.safe_write import write_json

WEIGHTS_FILE = "model.safetensors"
_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of malloc.h


def write_shards(folder: Path, groups: Iterable[Mapping[str, Tensor]], max_bytes: int) -> int:
    """Writes ``groups`` in their order and returns how many files they took.

    A group is never divided, so one that is larger than ``max_bytes`` has a larger file of its
    own. Raises OSError.
    """
    _free_at_once()
    files: list[dict[str, int]] = []  # of each file: name → bytes
    shard: dict[str, Tensor] = {}
    for group in groups:
        if shard and _num_bytes(shard) + _num_bytes(group) > max_bytes:
            files.append(_write(folder, len(files), shard))
            shard = {}
        shard.update(group)
    files.append(_write(folder, len(files), shard))
    if len(files) == 1:
        _part(folder, 0).rename(folder / WEIGHTS_FILE)
        return 1
    weight_map: dict[str, str] = {}
    for number, names in enumerate(files):
        final = f"model-{number + 1:05d}-of-{len(files):05d}.safetensors"
        _part(folder, number).rename(folder / final)
        weight_map |= dict.fromkeys(names, final)
    total = sum(size for names in files for size in names.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(folder / INDEX_FILE, index)
    return len(files)


def _free_at_once() -> None:
    """Has tensors give their memory back when they go.

    glibc keeps freed blocks of up to 32 MB for later: among tensors of many sizes and lives that
    is as much again as a file. A C library without the knob keeps its own ways.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 1 << 16)


def _write(folder: Path, number: int, shard: Mapping[str, Tensor]) -> dict[str, int]:
    save_file(dict(shard), _part(folder, number), metadata={"format": "pt"})
    return {name: tensor.nbytes for name, tensor in shard.items()}


def _part(folder: Path, number: int) -> Path:
    return folder / f"part-{number}.safetensors"


def _num_bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())
