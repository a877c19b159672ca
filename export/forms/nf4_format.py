"""bitsandbytes' NF4 with quantised scales, as a block format. Rows have to fill their blocks."""

from __future__ import annotations

import numpy as np
import torch
from bitsandbytes import functional
from torch import Tensor

from export.block_format import BlockFormat, Quantized
from export.quantized_base import nf4_state, quantize_nf4

_LEVELS: np.ndarray = functional.get_4bit_type("nf4", device="cpu").numpy()
_BETWEEN = (_LEVELS[1:] + _LEVELS[:-1]) / 2


class Nf4Blocks(BlockFormat):
    """Packed bytes are [out, in / 2]; scales those before they are quantised themselves."""

    size = 64  # bitsandbytes' default

    def full_scale(self, blocks: np.ndarray) -> np.ndarray:
        found: np.ndarray = np.abs(blocks).max(-1, keepdims=True)
        return found

    def nearest(self, values: np.ndarray) -> np.ndarray:
        found: np.ndarray = _LEVELS[np.searchsorted(_BETWEEN, values)]
        return found

    def stored(self, scales: np.ndarray) -> np.ndarray:
        state = nf4_state(torch.from_numpy(scales).reshape(-1), torch.float32, is_double=True)
        whole: Tensor = functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
        return whole.numpy().reshape(scales.shape)

    def pack(self, levels: np.ndarray) -> np.ndarray:
        index = np.searchsorted(_BETWEEN, levels).astype(np.uint8)
        return index[:, ::2] << 4 | index[:, 1::2]

    def quantize(self, weight: np.ndarray) -> Quantized:
        packed, state = quantize_nf4(torch.from_numpy(weight), is_double=False)
        rows = len(weight)
        return packed.numpy().reshape(rows, -1), state.absmax.numpy().reshape(rows, -1)

    def dequantize(self, quantized: Quantized) -> np.ndarray:
        packed, scales = quantized
        index = np.stack([packed >> 4, packed & 15], -1).reshape(*scales.shape, self.size)
        whole: np.ndarray = _LEVELS[index] * self.stored(scales)[:, :, None]
        return whole.reshape(len(scales), -1)


def nf4_tensors(
    quantized: Quantized, shape: torch.Size, dtype: torch.dtype
) -> tuple[Tensor, dict[str, Tensor]]:
    """Bytes as bitsandbytes has them, and what it keeps beside them."""
    packed, scales = quantized
    state = nf4_state(torch.from_numpy(scales).reshape(-1), dtype, is_double=True)
    state.shape = shape
    return torch.from_numpy(packed).reshape(-1, 1), state.as_dict(packed=True)
