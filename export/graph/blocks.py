"""Products with block-wise quantised weights: MatMulNBits, and GatherBlockQuantized for embeddings.

Every row of a weight is cut into blocks that share a scale. Activations are quantised as they
come, to 8 bits, each row by itself (``accuracy_level`` 4): no row depends on its neighbours, which
a scale for the whole batch would make it do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.convenience import replace_nodes_and_values

from export.graph.files import initializer, lazy
from export.graph.fill import Weights, fill, maker
from export.graph.linears import Linear, dims, linears
from export.graph.skeleton import EMBEDDING

_DOMAIN = "com.microsoft"
_INT8_PRODUCTS = 4  # accuracy_level
_ROWS = 4096  # searched at a time
_FACTORS = np.linspace(0.75, 1.1, 10)  # of the scale that keeps a block's largest weight

Views = dict[str, str]
FormOf = Callable[[str], "Blocks | None"]  # a weight's name → how it is stored; None: in float32
Quantized = tuple[np.ndarray, np.ndarray]  # [out, blocks, bytes], [out, blocks]


@dataclass(frozen=True, slots=True)
class Blocks:
    """How a weight is stored: ``bits`` 4 or 8, symmetric around zero.

    ``is_searched``: scales are those of the least squared error instead of the largest weight's.
    Measured on the embedded base at 4 bits that halves what the embedding costs, and costs more
    in the layers, whose largest weights matter most.
    """

    bits: int
    size: int
    is_searched: bool = False

    def num_blocks(self, in_features: int) -> int:
        return in_features // self.size

    def quantize(self, weight: np.ndarray) -> Quantized:
        """Of a weight [out, in] in float32, by ONNX Runtime's own quantizer unless searched."""
        if self.is_searched:
            return self._search(weight)
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

    def _search(self, weight: np.ndarray) -> Quantized:
        parts = [self._search_rows(weight[i : i + _ROWS]) for i in range(0, len(weight), _ROWS)]
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])

    def _search_rows(self, weight: np.ndarray) -> Quantized:
        limit = 1 << self.bits - 1
        cut = weight.reshape(len(weight), -1, self.size)
        largest = np.take_along_axis(cut, np.abs(cut).argmax(-1, keepdims=True), -1)
        largest[largest == 0] = 1.0
        best, least = np.zeros_like(cut), np.full(largest.shape, np.inf, np.float32)
        scales = np.ones_like(largest)
        for factor in _FACTORS:
            scale = largest * np.float32(-factor / limit)
            levels = (cut / scale).round().clip(-limit, limit - 1)
            squares = np.square(levels).sum(-1, keepdims=True).clip(1)  # 0 in a block of zeros
            scale = (levels * cut).sum(-1, keepdims=True) / squares
            error = np.square(levels * scale - cut).sum(-1, keepdims=True)
            is_better = error < least
            best, least = np.where(is_better, levels, best), np.where(is_better, error, least)
            scales = np.where(is_better, scale, scales)
        whole = (best + limit).astype(np.uint8)
        packed = whole[..., ::2] | whole[..., 1::2] << 4 if self.bits == 4 else whole
        return packed, scales[:, :, 0].astype(np.float32)

    def dequantize(self, quantized: Quantized) -> np.ndarray:
        """[out, in] in float32: what the products mean."""
        packed, scales = quantized
        values = np.stack([packed & 15, packed >> 4], -1) if self.bits == 4 else packed
        rows, blocks = scales.shape
        whole = values.reshape(rows, blocks, self.size).astype(np.float32) - (1 << self.bits - 1)
        return (whole * scales[:, :, None]).reshape(rows, -1)


def quantize(model: ir.Model, weights: Weights, form_of: FormOf) -> Views:
    """Fills a float32 skeleton; returns the views that `write_graph` is to make."""
    graph = model.graph
    model.opset_imports[_DOMAIN] = 1
    for linear in linears(graph):
        form = form_of(linear.name)
        if form is not None:
            _replace_product(graph, linear, _Parts(graph, linear.weight, form, weights))
    fill(model, weights)
    head = form_of(EMBEDDING)
    return {} if head is None else _replace_embedding(graph, head, weights)


class _Parts:
    """The initializers of one weight's blocks and scales, filled when they are written."""

    def __init__(self, graph: ir.Graph, weight: ir.Value, form: Blocks, weights: Weights) -> None:
        self.form = form
        rows, width = dims(weight)
        num_blocks = form.num_blocks(width)
        size = [rows, num_blocks, form.size * form.bits // 8]
        make = _quantized(maker(weights, weight), form)
        self.packed = initializer(graph, f"{weight.name}.blocks", ir.DataType.UINT8, size)
        self.scales = initializer(
            graph, f"{weight.name}.scales", ir.DataType.FLOAT, [rows, num_blocks]
        )
        lazy(self.packed, lambda: make(0))
        lazy(self.scales, lambda: make(1))


def _quantized(weight: Callable[[], np.ndarray], form: Blocks) -> Callable[[int], np.ndarray]:
    """Quantises for the first part that is asked for, and forgets with the second."""
    kept: dict[int, np.ndarray] = {}

    def part(index: int) -> np.ndarray:
        if index not in kept:
            kept.update(enumerate(form.quantize(weight())))
        return kept.pop(index)

    return part


def _replace_product(graph: ir.Graph, linear: Linear, parts: _Parts) -> None:
    attributes = {
        "K": linear.in_features,
        "N": linear.out_features,
        "bits": parts.form.bits,
        "block_size": parts.form.size,
        "accuracy_level": _INT8_PRODUCTS,
    }
    inputs = [linear.input, parts.packed, parts.scales, None, None, linear.bias]
    linear.replace(graph, [ir.node("MatMulNBits", inputs, attributes, domain=_DOMAIN)])
    if not linear.weight.uses():
        graph.initializers.pop(linear.name)


def _replace_embedding(graph: ir.Graph, form: Blocks, weights: Weights) -> Views:
    """Where it is the head as well, its bytes are the head's, seen without blocks."""
    weight = graph.initializers[EMBEDDING]
    ((lookup, _),) = weight.uses()
    rows, width = dims(weight)
    packed = f"{EMBEDDING}.blocks"
    if packed not in graph.initializers:
        _Parts(graph, weight, form, weights)
    scales = graph.initializers[f"{EMBEDDING}.scales"]
    table = initializer(
        graph, f"{EMBEDDING}.rows", ir.DataType.UINT8, [rows, width * form.bits // 8]
    )
    attributes = {"bits": form.bits, "block_size": form.size, "gather_axis": 0, "quantize_axis": 1}
    inputs = [table, lookup.inputs[1], scales]
    gather = ir.node("GatherBlockQuantized", inputs, attributes, domain=_DOMAIN)
    replace_nodes_and_values(graph, lookup, [lookup], [gather], lookup.outputs, gather.outputs)
    graph.initializers.pop(EMBEDDING)
    return {str(table.name): packed}
