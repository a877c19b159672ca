"""Fills a graph with its weights as they are, in float32 or float16."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir
import torch

from artifacts.errors import InvalidInput
from export.graph.files import constant, initializer, lazy
from export.graph.linears import Linear, linears

FLOAT16_MAX = 65504.0
Weights = Mapping[str, torch.Tensor]


def fill(model: ir.Model, weights: Weights) -> None:
    """Gives every empty initializer its weight, in the graph's number format.

    Weights of products lie transposed, as MatMul wants them: a runtime that transposes them itself
    keeps both. One that is the embedding as well stays as it is, under a Gemm, which transposes
    as it goes.
    """
    for linear in linears(model.graph):
        if linear.is_shared:
            _as_gemm(model.graph, linear)
        else:
            _as_product(model.graph, linear, weights)
    for value in model.graph.initializers.values():
        if value.const_value is None:
            lazy(value, maker(weights, value))


def maker(weights: Weights, value: ir.Value) -> Callable[[], np.ndarray]:
    """Reads the weight that ``value`` is named after. Raises InvalidInput beyond float16."""
    name, dtype = str(value.name), value.dtype

    def make() -> np.ndarray:
        weight = weights[name]
        if dtype == ir.DataType.FLOAT16:
            largest = float(weight.abs().max())
            if not largest <= FLOAT16_MAX:
                raise InvalidInput(
                    f"{name} holds {largest:g}, float16 goes to {FLOAT16_MAX:g}; use format onnx",
                    param="format",
                )
            weight = weight.half()
        return weight.numpy()

    return make


def _as_product(graph: ir.Graph, linear: Linear, weights: Weights) -> None:
    make = maker(weights, linear.weight)
    graph.initializers.pop(linear.name)
    assert linear.weight.dtype is not None
    size = [linear.in_features, linear.out_features]
    turned = initializer(graph, linear.name, linear.weight.dtype, size)
    lazy(turned, lambda: np.ascontiguousarray(make().T))
    product = ir.node("MatMul", [linear.input, turned])
    linear.replace(
        graph,
        [product]
        if linear.bias is None
        else [product, ir.node("Add", [product.outputs[0], linear.bias])],
    )


def _as_gemm(graph: ir.Graph, linear: Linear) -> None:
    flat = ir.node("Reshape", [linear.input, constant(graph, [-1, linear.in_features])])
    inputs = [flat.outputs[0], linear.weight]
    if linear.bias is not None:
        inputs.append(linear.bias)
    product = ir.node("Gemm", inputs, {"transB": 1})
    rows = ir.node("Shape", [linear.input], {"start": 0, "end": 2})
    shape = ir.node(
        "Concat", [rows.outputs[0], constant(graph, [linear.out_features])], {"axis": 0}
    )
    back = ir.node("Reshape", [product.outputs[0], shape.outputs[0]])
    linear.replace(graph, [flat, product, rows, shape, back])
