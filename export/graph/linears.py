"""The products with constant weights in a skeleton: found, and replaced by others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.convenience import replace_nodes_and_values


@dataclass(frozen=True, slots=True)
class Linear:
    """What torch's Linear is traced as: Transpose of the weight, MatMul, perhaps Add."""

    weight: ir.Value  # [out_features, in_features], as the checkpoint has it
    nodes: tuple[ir.Node, ...]
    bias: ir.Value | None

    @property
    def name(self) -> str:
        return str(self.weight.name)

    @property
    def input(self) -> ir.Value:
        return _some(self.nodes[1].inputs[0])

    @property
    def output(self) -> ir.Value:
        return self.nodes[-1].outputs[0]

    @property
    def out_features(self) -> int:
        return dims(self.weight)[0]

    @property
    def in_features(self) -> int:
        return dims(self.weight)[1]

    @property
    def is_shared(self) -> bool:
        """Whether something else reads the weight too: the embedding, where they are tied."""
        return len(self.weight.uses()) > 1

    def replace(self, graph: ir.Graph, nodes: Sequence[ir.Node]) -> None:
        """By nodes whose last one's output takes the place of this one's."""
        replace_nodes_and_values(
            graph, self.nodes[-1], self.nodes, nodes, [self.output], [nodes[-1].outputs[0]]
        )


def linears(graph: ir.Graph) -> list[Linear]:
    return list(_linears(graph))


def _linears(graph: ir.Graph) -> Iterator[Linear]:
    for node in graph:
        weight = node.inputs[0] if node.op_type == "Transpose" else None
        if weight is None or not weight.is_initializer() or weight.is_graph_input():
            continue  # one that may be given with a call is no constant
        product = _only_user(node)
        after = [use.node for use in product.outputs[0].uses()]
        adding = after[0] if len(after) == 1 and after[0].op_type == "Add" else None
        bias = None if adding is None else adding.inputs[1]
        if adding is None or bias is None or not bias.is_initializer():
            yield Linear(weight, (node, product), None)
        else:
            yield Linear(weight, (node, product, adding), bias)


def dims(value: ir.Value) -> list[int]:
    """A weight's shape."""
    assert value.shape is not None
    sizes = [size for size in value.shape if isinstance(size, int)]
    assert len(sizes) == len(value.shape), f"{value} has a free size"
    return sizes


def _only_user(node: ir.Node) -> ir.Node:
    (use,) = node.outputs[0].uses()
    assert use.node.op_type == "MatMul", f"{node.inputs[0]} is used by {use.node.op_type}"
    return use.node


def _some(value: ir.Value | None) -> ir.Value:
    assert value is not None
    return value
