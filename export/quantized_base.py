"""A base as an adapter saw it while QLoRA trained it: quantised by bitsandbytes, dequantised again.

Bit for bit what ``from_pretrained(base, quantization_config=…).dequantize()`` gives, one weight at
a time. How it was quantised is in the adapter's manifest.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from artifacts.architecture import linear_shapes
from artifacts.errors import InvalidInput
from export.source import Source

_PIECE = (
    1 << 18
)  # weights, a multiple of every block: bitsandbytes takes 24 bytes for each meanwhile
_SCALE_BLOCK = 256  # scales of nf4 that share a scale of theirs: double quantisation


def is_quantized(name: str, source: Source) -> bool:
    """Whether training held this tensor in 4 or 8 bits: the decoder's linear weights alone."""
    module = name.removesuffix(".weight")
    return source.quantization != "none" and module in linear_shapes(source.base.config)


def dequantized(name: str, weight: Tensor, source: Source) -> Tensor:
    """The value of ``weight`` (float32, of the base) that the adapter was trained on, in float32.

    Raises InvalidInput if bitsandbytes is not installed.
    """
    if not is_quantized(name, source):
        return weight
    try:
        from bitsandbytes import functional
    except ImportError as error:
        raise InvalidInput(
            f"{source.adapter_id} was trained on a base in {source.quantization}: merging into it "
            "needs bitsandbytes (pip install bitsandbytes); or merge into the 16-bit base with "
            "--merge original",
            param="merge",
        ) from error
    loaded = weight.to(trained_dtype(source))
    if source.quantization == "int8":
        value = functional.int8_vectorwise_dequant(*quantize_int8(loaded)).to(loaded.dtype)
    else:
        packed, state = quantize_nf4(loaded, is_double=is_double(source))
        value = functional.dequantize_4bit(packed, state)
    return torch.as_tensor(value).float()


def quantize_nf4(weight: Tensor, *, is_double: bool) -> tuple[Tensor, Any]:
    """``functional.quantize_4bit``'s weights and state, made in pieces."""
    from bitsandbytes import functional

    flat = weight.reshape(-1).split(_PIECE)
    pieces = [functional.quantize_4bit(each, quant_type="nf4") for each in flat]
    absmax = torch.cat([each.absmax for _, each in pieces])
    state = nf4_state(absmax, weight.dtype, is_double=is_double)
    state.shape = weight.shape
    return torch.cat([packed for packed, _ in pieces]), state


def nf4_state(absmax: Tensor, dtype: torch.dtype, *, is_double: bool) -> Any:
    """bitsandbytes' record of blocks with these scales; its ``shape`` is left to the caller."""
    from bitsandbytes import functional

    _, state = functional.quantize_4bit(torch.zeros(64, dtype=dtype), quant_type="nf4")
    state.absmax = absmax
    if is_double:
        state.offset = absmax.mean()
        state.absmax, state.state2 = functional.quantize_blockwise(
            absmax - state.offset, blocksize=_SCALE_BLOCK
        )
        state.nested = True
    return state


def quantize_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """``functional.int8_vectorwise_quant``'s rows and their scales, made in pieces."""
    from bitsandbytes import functional

    rows = weight.split(max(1, _PIECE // weight.shape[1]))
    pieces = [functional.int8_vectorwise_quant(each.to(torch.float16)) for each in rows]
    return torch.cat([each[0] for each in pieces]), torch.cat([each[1] for each in pieces])


def trained_dtype(source: Source) -> torch.dtype:
    """In which the base was loaded for training, before it was quantised."""
    assert source.manifest is not None
    named = getattr(torch, str(source.manifest.settings.get("dtype")), None)
    return named if isinstance(named, torch.dtype) else source.base.config.dtype


def is_double(source: Source) -> bool:
    """Whether the scales were quantised, too; training's default where nobody recorded it."""
    assert source.manifest is not None
    return bool(source.manifest.settings.get("double_quantization", True))
