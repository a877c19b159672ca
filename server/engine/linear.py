"""Matrix products of the base: plain, prepacked for the CPU, or 4- and 8-bit.

Every product is a callable ``x [num_tokens, in] -> y [num_tokens, out]``. Prepacking reorders a
weight once into the blocked layout that oneDNN's kernels read; it halves the time of the small
batches that decoding consists of, and changes no result bit in bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from server.engine.errors import UnsupportedModel

Linear = Callable[[Tensor], Tensor]
Quantization = Literal["none", "nf4", "int8"]

PACKING_ROWS = 16  # rows the packed layout is chosen for: a decode step, not a long prompt


def make_linear(weight: Tensor, bias: Tensor | None, quantization: Quantization) -> Linear:
    """A product with ``weight [out, in]`` in the form that is fastest on its device."""
    if quantization != "none":
        return _quantized(weight, bias, quantization)
    if weight.device.type == "cpu":
        if torch.backends.mkldnn.is_available():
            return _prepacked(weight, bias)
        weight = weight.clone()  # it may be a view into a mapped file
    return lambda x: F.linear(x, weight, bias)


def _prepacked(weight: Tensor, bias: Tensor | None) -> Linear:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), PACKING_ROWS)
    pointwise = torch.ops.mkldnn._linear_pointwise

    def linear(x: Tensor) -> Tensor:
        y: Tensor = pointwise(x, packed, bias, "none", [], "")
        return y

    return linear


def _quantized(weight: Tensor, bias: Tensor | None, quantization: Quantization) -> Linear:
    try:
        import bitsandbytes as bnb
    except ImportError as error:
        raise UnsupportedModel(
            f"quantization {quantization!r} needs bitsandbytes; "
            "install it with: pip install 'loraloop[quantization]'"
        ) from error
    out_features, in_features = weight.shape
    layer: torch.nn.Module
    if quantization == "nf4":
        layer = bnb.nn.Linear4bit(
            in_features, out_features, bias is not None, weight.dtype, quant_type="nf4"
        )
        layer.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
    else:
        layer = bnb.nn.Linear8bitLt(
            in_features, out_features, bias is not None, has_fp16_weights=False, threshold=6.0
        )
        layer.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    if bias is not None:
        layer.bias = torch.nn.Parameter(bias, requires_grad=False)
    layer = layer.to(weight.device)  # bitsandbytes quantises on this move

    def linear(x: Tensor) -> Tensor:
        y: Tensor = layer(x)
        return y

    return linear
