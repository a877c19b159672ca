"""A model's tensors under llama.cpp's names, made and written one after the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFWriter
from numpy.typing import NDArray
from torch import Tensor

from artifacts.architecture import EMBEDDING, HEAD, head_dim, tensor_shapes
from artifacts.errors import InvalidInput
from export.block_format import Quantized
from export.gguf.metadata import FREQUENCIES, architecture, rope_divisors

BLOCK = 32  # weights of a row that share a scale in Q8_0 and Q4_0


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of the file. ``source``: its name in the checkpoint; None: the frequencies."""

    name: str
    source: str | None
    shape: tuple[int, ...]
    kind: Kind

    @property
    def num_bytes(self) -> int:
        block, width = gguf.GGML_QUANT_SIZES[self.kind]
        return math.prod(self.shape) // int(block) * int(width)


def plan(config: Any, kind: Kind) -> list[Entry]:
    """Every tensor of the file, in the order of the checkpoint's names."""
    names = TensorNames(config)
    entries = [
        Entry(names(source), source, shape, _kind_of(source, shape, kind, config))
        for source, shape in tensor_shapes(config).items()
    ]
    if rope_divisors(config) is not None:
        entries.append(Entry(FREQUENCIES, None, (head_dim(config) // 2,), Kind.F32))
    return entries


def _kind_of(source: str, shape: tuple[int, ...], kind: Kind, config: Any) -> Kind:
    """Vectors stay F32, as llama.cpp wants them; rows that fill no blocks stay F16.

    What makes the logits is one step wider than Q4_0, as llama.cpp has it too (Q6_K there, which
    the gguf package cannot write).
    """
    if len(shape) == 1:
        return Kind.F32
    if kind == Kind.F16 or shape[1] % BLOCK:
        return Kind.F16
    head = EMBEDDING if config.tie_word_embeddings else HEAD
    return Kind.Q8_0 if source == head else kind


def write_tensors(
    writer: GGUFWriter, entries: Sequence[Entry], content: Callable[[Entry], NDArray[Any]]
) -> Iterable[str]:
    """Writes the file; yields each name before its tensor. One is in memory at a time."""
    for entry in entries:
        dtype = np.dtype(np.float32)  # `kind` decides; this is only not uint8
        writer.add_tensor_info(entry.name, entry.shape, dtype, entry.num_bytes, entry.kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for entry in entries:
        yield entry.name
        writer.write_tensor_data(content(entry))


def content_of(
    entry: Entry, tensors: Mapping[str, Tensor], config: Any, given: Mapping[str, Quantized]
) -> NDArray[Any]:
    """What the file holds of a tensor. ``given``: those that are in blocks of 4 bits already."""
    if entry.source is None:
        divisors = rope_divisors(config)
        assert divisors is not None
        return divisors.numpy()
    if entry.source in given:
        blocks = torch.from_numpy(q4_0(given[entry.source]))
        return permuted(entry.source, blocks, config).contiguous().numpy()
    weight = permuted(entry.source, tensors[entry.source], config).contiguous().numpy()
    with np.errstate(over="ignore"):
        content: NDArray[Any] = gguf.quants.quantize(weight, entry.kind)
    if entry.kind == Kind.F16 and not np.isfinite(content).all():
        raise InvalidInput(
            f"{entry.source} has {abs(weight).max():.3g}, more than F16 can hold; choose another "
            "format",
            param="format",
        )
    return content


def q4_0(quantized: Quantized) -> NDArray[np.uint8]:
    """Rows of bytes: of each block its scale in float16, then weights i and i + 16 in a byte."""
    packed, scales = quantized
    levels = np.stack([packed & 15, packed >> 4], -1).reshape(*scales.shape, BLOCK)
    halves = levels[..., : BLOCK // 2] | levels[..., BLOCK // 2 :] << 4
    bytes_of_scales = scales.astype(np.float16)[..., None].view(np.uint8)
    return np.concatenate([bytes_of_scales, halves], -1).reshape(len(scales), -1)


def permuted(source: str, weight: Tensor, config: Any) -> Tensor:
    """Rows of Llama's q and k as llama.cpp rotates them: pairs side by side, not in halves.

    Its graphs of other families rotate in halves, as transformers does.
    """
    if architecture(config) != "llama":
        return weight
    if ".q_proj." in source:
        return _interleaved(weight, config.num_attention_heads)
    if ".k_proj." in source:
        return _interleaved(weight, config.num_key_value_heads)
    return weight


def _interleaved(weight: Tensor, num_heads: int) -> Tensor:
    halves = weight.reshape(num_heads, 2, -1, *weight.shape[1:])
    return torch.swapaxes(halves, 1, 2).reshape(weight.shape)


class TensorNames:
    """Checkpoint name → name in GGUF."""

    def __init__(self, config: Any) -> None:
        arch = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}[architecture(config)]
        self._map = gguf.get_tensor_name_map(arch, config.num_hidden_layers)

    def __call__(self, source: str) -> str:
        name: str | None = self._map.get_name(source, try_suffixes=(".weight", ".bias"))
        assert name is not None, source
        return name
