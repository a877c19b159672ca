"""Base weights and adapters in the layout of the kernels."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from server.engine.amx.library import (
    ADD_BF16,
    DEPTH,
    SILU_MUL,
    STORE_BF16,
    TILE,
    Linear,
    LoraLinear,
    LoraPart,
    huge_pages,
)
from server.engine.decoder import DecoderShape, Weights

if TYPE_CHECKING:
    from artifacts.adapter import LoraPair, LoraWeights


@dataclass(frozen=True, slots=True)
class Part:
    """One projection inside a fused product: output tile i is tile ``first + i * stride``."""

    module: str
    out_features: int
    in_features: int
    first_tile: int
    stride: int

    @property
    def num_tiles(self) -> int:
        return -(-self.out_features // TILE)


def parts_of(shape: DecoderShape, layer: int) -> list[list[Part]]:
    """The four products of a layer, each with its projections."""
    attn, mlp = f"model.layers.{layer}.self_attn.", f"model.layers.{layer}.mlp."
    hidden, inner, q, kv = shape.hidden, shape.intermediate, shape.q_width, shape.kv_width
    return [
        [
            Part(attn + "q_proj", q, hidden, 0, 1),
            Part(attn + "k_proj", kv, hidden, q // TILE, 1),
            Part(attn + "v_proj", kv, hidden, (q + kv) // TILE, 1),
        ],
        [Part(attn + "o_proj", hidden, q, 0, 1)],
        # A tile of gate beside its tile of up, so that their product needs no second pass.
        [Part(mlp + "gate_proj", inner, hidden, 0, 2), Part(mlp + "up_proj", inner, hidden, 1, 2)],
        [Part(mlp + "down_proj", hidden, inner, 0, 1)],
    ]


class PackedLinear:
    """A product's weight and bias in memory, and the C structure that points at them."""

    def __init__(
        self,
        library: ctypes.CDLL,
        parts: Sequence[Part],
        weights: Weights,
        *,
        epilogue: int,
        index: int = 0,
    ) -> None:
        in_features = parts[0].in_features
        num_tiles = sum(p.num_tiles for p in parts)
        num_panels = -(-num_tiles // 2)
        self.weight = huge_pages(num_panels * 2 * TILE * in_features)
        biases = [weights.optional(f"{p.module}.bias", p.out_features) for p in parts]
        self.bias: Tensor | None = None
        if any(b is not None for b in biases):
            self.bias = torch.zeros(num_panels * 2, TILE)
        for part, bias in zip(parts, biases, strict=True):
            raw = weights.take(f"{part.module}.weight", part.out_features, in_features).contiguous()
            library.amx_pack(
                self.weight.data_ptr(),
                raw.data_ptr(),
                part.out_features,
                in_features,
                part.first_tile,
                part.stride,
            )
            if bias is not None and self.bias is not None:
                tiles = slice(part.first_tile, None, part.stride)
                self.bias[tiles][: part.num_tiles] = bias.float().view(-1, TILE)
        self.c = Linear(
            self.weight.data_ptr(),
            None if self.bias is None else self.bias.data_ptr(),
            in_features,
            num_tiles,
            epilogue,
            index,
        )


EPILOGUES = (STORE_BF16, ADD_BF16, SILU_MUL, ADD_BF16)


class PackedLora:
    """One adapter: every part's matrices in one piece of memory, and the table that C reads."""

    def __init__(self, library: ctypes.CDLL, shape: DecoderShape, weights: LoraWeights) -> None:
        self.num_rows = weights.rank
        groups = [g for layer in range(shape.num_layers) for g in parts_of(shape, layer)]
        table = (LoraLinear * len(groups))()
        sizes = [_num_values(p, pair) for p, pair in _present(groups, weights.pairs)]
        # The kernels read up to a tile past a part's end.
        self._memory = huge_pages(sum(a + b for a, b in sizes) + TILE * DEPTH)
        self.num_bytes = 2 * sum(a + b for a, b in sizes)
        at = self._memory.data_ptr()
        for linear, group in zip(table, groups, strict=True):
            for part, pair in _present([group], weights.pairs):
                num_a, num_b = _num_values(part, pair)
                a, b = at, at + 2 * num_a
                at = b + 2 * num_b
                _pack(library, part, pair, (a, b))
                rank = pair.a.shape[0]
                assert rank <= self.num_rows, part
                linear.parts[linear.num_parts] = LoraPart(
                    a, b, part.first_tile, part.stride, part.num_tiles, rank
                )
                linear.num_parts += 1
        self._table = table
        self.address = ctypes.addressof(table)


def _present(
    groups: Sequence[Sequence[Part]], pairs: Mapping[str, LoraPair]
) -> list[tuple[Part, LoraPair]]:
    return [(p, pairs[p.module]) for group in groups for p in group if p.module in pairs]


def _num_values(part: Part, pair: LoraPair) -> tuple[int, int]:
    rank = pair.a.shape[0]
    assert pair.a.shape == (rank, part.in_features), part  # or C would read beside it
    assert pair.b.shape == (part.out_features, rank), part
    return -(-rank // TILE) * TILE * part.in_features, (rank + rank % 2) * part.out_features


def _pack(library: ctypes.CDLL, part: Part, pair: LoraPair, places: tuple[int, int]) -> None:
    a = pair.a.to(torch.bfloat16).contiguous()  # [rank, in]
    b = (pair.b.float() * pair.scaling).to(torch.bfloat16).contiguous()  # [out, rank]
    library.amx_pack_lora(
        *places, a.data_ptr(), b.data_ptr(), a.shape[0], part.in_features, part.out_features
    )
