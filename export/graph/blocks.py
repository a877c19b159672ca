"""Products with block-wise quantised weights: MatMulNBits, and GatherBlockQuantized for embeddings.

Every row of a weight is cut into blocks that share a scale. Activations are quantised as they
come, to 8 bits, each row by itself (``accuracy_level`` 4): no row depends on its neighbours, which
a scale for the whole batch would make it do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.convenience import replace_nodes_and_values

from artifacts.architecture import EMBEDDING
from export.block_format import Blocks, Quantized
from export.graph.files import initializer, lazy
from export.graph.fill import Weights, fill, maker
from export.graph.linears import Linear, dims, linears

_DOMAIN = "com.microsoft"
_INT8_PRODUCTS = 4  # accuracy_level

Views = dict[str, str]
FormOf = Callable[[str], Blocks | None]  # a weight's name → how it is stored; None: in float32


@dataclass(frozen=True, slots=True)
class Quantizer:
    """``given``: weights that are quantised already, by name; each other is rounded by itself."""

    weights: Weights
    form_of: FormOf
    given: Mapping[str, Quantized]

    def parts(self, weight: ir.Value, form: Blocks) -> Callable[[int], np.ndarray]:
        """Blocks (0) and scales (1); made for the first that is asked for, kept for the second."""
        name, make = str(weight.name), maker(self.weights, weight)
        kept: dict[int, np.ndarray] = {}

        def part(index: int) -> np.ndarray:
            if index not in kept:
                kept.update(enumerate(self.given.get(name) or form.quantize(make())))
            return kept.pop(index)

        return part


def quantize(model: ir.Model, by: Quantizer) -> Views:
    """Fills a float32 skeleton; returns the views that `write_graph` is to make."""
    graph = model.graph
    model.opset_imports[_DOMAIN] = 1
    for linear in linears(graph):
        form = by.form_of(linear.name)
        if form is not None:
            _replace_product(graph, linear, _Parts(graph, linear.weight, form, by))
    fill(model, by.weights)
    head = by.form_of(EMBEDDING)
    return {} if head is None else _replace_embedding(graph, head, by)


class _Parts:
    """The initializers of one weight's blocks and scales, filled when they are written."""

    def __init__(self, graph: ir.Graph, weight: ir.Value, form: Blocks, by: Quantizer) -> None:
        self.form = form
        rows, width = dims(weight)
        num_blocks = form.num_blocks(width)
        size = [rows, num_blocks, form.size * form.bits // 8]
        part = by.parts(weight, form)
        self.packed = initializer(graph, f"{weight.name}.blocks", ir.DataType.UINT8, size)
        self.scales = initializer(
            graph, f"{weight.name}.scales", ir.DataType.FLOAT, [rows, num_blocks]
        )
        lazy(self.packed, lambda: part(0))
        lazy(self.scales, lambda: part(1))


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


def _replace_embedding(graph: ir.Graph, form: Blocks, by: Quantizer) -> Views:
    """Where it is the head as well, its bytes are the head's, seen without blocks."""
    weight = graph.initializers[EMBEDDING]
    ((lookup, _),) = weight.uses()
    rows, width = dims(weight)
    packed = f"{EMBEDDING}.blocks"
    if packed not in graph.initializers:
        _Parts(graph, weight, form, by)
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
