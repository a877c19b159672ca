"""Weights in blocks: rows cut into pieces of one size that share a scale, and levels between."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

_PIECE = 1 << 15  # weights that are searched at a time: they fit a cache
_FACTORS = np.linspace(0.6, 1.1, 21, dtype=np.float32)  # of the full scale

Quantized = tuple[np.ndarray, np.ndarray]  # [out, blocks, bytes], [out, blocks]


class BlockFormat(ABC):
    """Levels that a weight may have, in units of its block's scale, and how they are stored."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Weights of a block."""

    @abstractmethod
    def full_scale(self, blocks: np.ndarray) -> np.ndarray:
        """The scale [out, blocks, 1] at which the largest weight of a block is a level itself."""

    @abstractmethod
    def nearest(self, values: np.ndarray) -> np.ndarray:
        """The level nearest to each value."""

    def stored(self, scales: np.ndarray) -> np.ndarray:
        """Scales as they are read again."""
        return scales

    @abstractmethod
    def pack(self, levels: np.ndarray) -> np.ndarray:
        """Bytes of levels [out, in]."""

    @abstractmethod
    def quantize(self, weight: np.ndarray) -> Quantized:
        """Of a weight [out, in] in float32, each block by itself."""

    @abstractmethod
    def dequantize(self, quantized: Quantized) -> np.ndarray:
        """[out, in] in float32: what the products mean."""

    def search(
        self, weight: np.ndarray, importance: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Levels [out, in] and scales [out, blocks] of the least squared error.

        ``importance`` [in], above 0: how much an error in each column counts.
        """
        counts = np.ones(weight.shape[1], np.float32) if importance is None else importance
        counts = counts.reshape(1, -1, self.size)
        step = max(1, _PIECE // weight.shape[1])
        parts = [
            self._search_rows(weight[start : start + step], counts)
            for start in range(0, len(weight), step)
        ]
        levels, scales = zip(*parts, strict=True)
        return np.concatenate(levels), np.concatenate(scales)

    def _search_rows(self, weight: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        cut = weight.reshape(len(weight), -1, self.size)
        full = self.full_scale(cut)
        full[full == 0] = 1.0
        best, least = np.zeros_like(cut), np.full(full.shape, np.inf, np.float32)
        scales = np.ones_like(full)
        for factor in _FACTORS:
            levels = self.nearest(cut / (full * factor))
            squares = (counts * np.square(levels)).sum(-1, keepdims=True)
            squares[squares == 0] = 1.0  # a block of zeros
            scale = (counts * levels * cut).sum(-1, keepdims=True) / squares
            error = (counts * np.square(levels * scale - cut)).sum(-1, keepdims=True)
            is_better = error < least
            best, least = np.where(is_better, levels, best), np.where(is_better, error, least)
            scales = np.where(is_better, scale, scales)
        return best.reshape(weight.shape), scales[:, :, 0].astype(np.float32)


@dataclass(frozen=True, slots=True)
class Blocks(BlockFormat):
    """ONNX Runtime's: ``bits`` 4 or 8, symmetric around zero.

    ``is_searched``: scales are those of the least squared error instead of the largest weight's.
    Measured on the embedded base at 4 bits that halves what the embedding costs, and costs more
    in the layers, whose largest weights matter most.
    """

    bits: int
    block_size: int
    is_searched: bool = False

    @property
    def size(self) -> int:
        return self.block_size

    @property
    def limit(self) -> int:
        """Levels go from ``-limit`` to ``limit - 1``."""
        return 1 << self.bits - 1

    def num_blocks(self, in_features: int) -> int:
        return in_features // self.size

    def quantize(self, weight: np.ndarray) -> Quantized:
        """By ONNX Runtime's own quantizer unless searched."""
        if self.is_searched:
            levels, scales = self.search(weight)
            return self.pack(levels), scales
        from onnxruntime.capi import _pybind_state as native

        function = native.quantize_matmul_4bits if self.bits == 4 else native.quantize_matmul_8bits
        rows, width = weight.shape
        blocks = self.num_blocks(width)
        packed = np.zeros((rows, blocks, self.size * self.bits // 8), np.uint8)
        scales = np.zeros(rows * blocks, np.float32)
        unused = np.zeros(rows * ((blocks * self.bits + 7) // 8), np.uint8)
        turned = np.ascontiguousarray(weight.T)
        function(packed, turned, scales, unused, self.size, rows, width, True)
        return packed, scales.reshape(rows, blocks)

    def full_scale(self, blocks: np.ndarray) -> np.ndarray:
        largest = np.take_along_axis(blocks, np.abs(blocks).argmax(-1, keepdims=True), -1)
        return largest / np.float32(-self.limit)

    def nearest(self, values: np.ndarray) -> np.ndarray:
        found: np.ndarray = values.round().clip(-self.limit, self.limit - 1)
        return found

    def pack(self, levels: np.ndarray) -> np.ndarray:
        """[out, blocks, …]."""
        whole = (levels + self.limit).astype(np.uint8).reshape(len(levels), -1, self.size)
        return whole[..., ::2] | whole[..., 1::2] << 4 if self.bits == 4 else whole

    def dequantize(self, quantized: Quantized) -> np.ndarray:
        packed, scales = quantized
        values = np.stack([packed & 15, packed >> 4], -1) if self.bits == 4 else packed
        rows, blocks = scales.shape
        whole = values.reshape(rows, blocks, self.size).astype(np.float32) - self.limit
        return (whole * scales[:, :, None]).reshape(rows, -1)
