"""What every exported form can do: a batch of tokens through a model whose KV cache lies outside.

The cache is a set of fixed places, one row for each sequence, that the model writes in place: no
step copies it. Token t of row b goes to place ``cache_start[b] + t`` and sees the places before and
its own that ``attention_mask[b]`` allows. So rows may be padded left (places masked out) or right
(places that are written again later), chunks may follow on chunks, and one graph serves both.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from artifacts.adapter import LoraWeights

INPUT_NAMES = ("input_ids", "position_ids", "cache_start", "attention_mask", "logits_rows")

AdapterInputs = Mapping[str, Tensor]  # a graph's input name → its value, scaling included


@dataclass(frozen=True, slots=True)
class GraphShape:
    """Sizes of a model; format and place of its cache. Batches and logits are on the CPU."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    cache_dtype: torch.dtype
    cache_device: str = "cpu"

    @property
    def cache_names(self) -> list[str]:
        """In the order of `Cache`: key and value of layer 0, of layer 1, …"""
        return [f"{i}.{side}" for i in range(self.num_layers) for side in ("key", "value")]

    def new_cache(self, num_rows: int, capacity: int) -> list[Tensor]:
        """Zeros: ``2 * num_layers`` tensors [num_rows, num_kv_heads, capacity, head_dim]."""
        return [self.new_tensor(num_rows, capacity) for _ in range(2 * self.num_layers)]

    def new_tensor(self, num_rows: int, capacity: int) -> Tensor:
        """One of them. On the CPU places that are never written cost no memory, which torch's own
        zeros would. Raises MemoryError and what torch raises on other devices."""
        size = (num_rows, self.num_kv_heads, capacity, self.head_dim)
        if self.cache_device != "cpu":
            return torch.zeros(size, dtype=self.cache_dtype, device=self.cache_device)
        num_bytes = math.prod(size) * self.cache_dtype.itemsize
        try:
            pages = mmap.mmap(-1, num_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise MemoryError(f"no {num_bytes} bytes for a KV cache ({error})") from error
        return torch.frombuffer(pages, dtype=self.cache_dtype).view(size)


@dataclass(frozen=True, slots=True)
class GraphBatch:
    """One call's tokens; all int64 and contiguous."""

    input_ids: Tensor  # [num_rows, length]
    position_ids: Tensor  # [num_rows, length]
    cache_start: Tensor  # [num_rows] place of each row's first token
    attention_mask: Tensor  # [num_rows, capacity] 1: may be seen; own places included
    logits_rows: Tensor  # [num_rows, num_wanted] tokens of this call whose logits are wanted


class ExportedModel(Protocol):
    """A loaded export. One call at a time."""

    shape: GraphShape
    takes_adapters: bool

    def run(
        self, batch: GraphBatch, cache: Sequence[Tensor], adapter: AdapterInputs | None = None
    ) -> Tensor:
        """Logits [num_rows, num_wanted, vocab_size] in float32; ``cache`` is written in place.

        Every tensor of ``cache`` is [num_rows, num_kv_heads, capacity, head_dim] and contiguous; it
        may be a view of some rows of a larger one. Rows that are only there to fill the range are
        given any token at the place where they go on: what they write is written again.
        """
        ...

    def pack(self, weights: LoraWeights) -> AdapterInputs:
        """An adapter as this graph takes it. Only where ``takes_adapters``."""
        ...


class Loader(Protocol):
    """Opens a folder that export wrote. Raises Corrupt and UnsupportedExport."""

    def __call__(self, folder: Path, *, num_threads: int | None = None) -> ExportedModel: ...
