"""A base as an adapter saw it while QLoRA trained it: quantised by bitsandbytes, dequantised again.

Bit for bit what ``from_pretrained(base, quantization_config=…).dequantize()`` gives, one weight at
a time. How it was quantised is in the adapter's manifest.
"""

from __future__ import annotations

import torch
from torch import Tensor

from artifacts.architecture import linear_shapes
from artifacts.errors import InvalidInput
from export.source import Source


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
        rows, scales, _ = functional.int8_vectorwise_quant(loaded.to(torch.float16))
        value = functional.int8_vectorwise_dequant(rows, scales).to(loaded.dtype)
    else:
        packed, state = functional.quantize_4bit(
            loaded, compress_statistics=is_double(source), quant_type="nf4"
        )
        value = functional.dequantize_4bit(packed, state)
    return torch.as_tensor(value).float()


def trained_dtype(source: Source) -> torch.dtype:
    """In which the base was loaded for training, before it was quantised."""
    assert source.manifest is not None
    named = getattr(torch, str(source.manifest.settings.get("dtype")), None)
    return named if isinstance(named, torch.dtype) else source.base.config.dtype


def is_double(source: Source) -> bool:
    """Whether the scales were quantised, too; training's default where nobody recorded it."""
    assert source.manifest is not None
    return bool(source.manifest.settings.get("double_quantization", True))
