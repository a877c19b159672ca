"""The base's graph with LoRA weights as inputs, and the adapter as a file beside it.

The graph is the base alone, in float32, as it is stored; a rank-1 update of zeros stands where no
adapter is given. So one graph serves every adapter of its base, one session swaps them from call to
call, and another version is one more file (`write_onnx_adapter`).
"""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from artifacts.architecture import linear_shapes, tensor_shapes
from artifacts.errors import StorageError
from artifacts.exported.onnx_adapters import (
    ADAPTERS_FOLDER,
    SUFFIX,
    input_names,
    pack_adapter,
)
from artifacts.manifest import AdapterManifest
from artifacts.safe_write import sync_folder
from artifacts.storage import storage_errors
from export.forms.form import Options, Workshop
from export.graph.files import write_graph
from export.graph.fill import fill
from export.graph.linears import Linear, linears
from export.graph.skeleton import OPSET
from export.source import MergedTensors, Source


class OnnxAdapters:
    """An ``export.forms.form.Form``."""

    options: frozenset[str] = frozenset()

    def check(self, source: Source, options: Options) -> None:
        pass  # every family that is served can be traced, and every adapter that opens fits

    def num_bytes(self, source: Source, options: Options) -> int:
        in_base = sum(math.prod(size) for size in tensor_shapes(source.base.config).values())
        return 4 * (in_base + source.weights.num_parameters)

    def write(self, workshop: Workshop, options: Options, folder: Path) -> dict[str, Any]:
        source = workshop.source
        model = workshop.skeleton(torch.float32)
        add_adapter_inputs(model.graph, linear_shapes(source.base.config))
        fill(model, MergedTensors(_base_alone(source)))
        write_graph(model, folder, workshop.progress)
        path = folder / ADAPTERS_FOLDER / f"{source.adapter_id}{SUFFIX}"
        path.parent.mkdir()
        write_onnx_adapter(source, path)
        return {"opset": OPSET, "weights": "float32", "cache": "float32"}


def _base_alone(source: Source) -> Source:
    """With nothing to merge. Not dequantised either: other adapters go onto the same graph."""
    return replace(source, merge="original", weights=replace(source.weights, pairs={}))


def add_adapter_inputs(graph: ir.Graph, shapes: Mapping[str, tuple[int, int]]) -> None:
    """``y = linear(x) + (x @ A.T) @ B.T`` for each of ``shapes`` (module → (out, in)).

    A and B are inputs that are initializers too, so they may be left out; their rank is free.
    """
    found = {linear.name.removesuffix(".weight"): linear for linear in linears(graph)}
    for module, (out, inner) in shapes.items():
        a, b = input_names(module)
        rank = f"{module}.rank"  # of its own: runtimes take sizes of one name to be one size
        _add_update(
            graph,
            found[module],
            _input(graph, a, [rank, inner], np.zeros((1, inner), np.float32)),
            _input(graph, b, [out, rank], np.zeros((out, 1), np.float32)),
        )


def _input(
    graph: ir.Graph, name: str, shape: list[str | int], default: np.ndarray[Any, Any]
) -> ir.Value:
    value = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(shape))
    value.const_value = ir.tensor(default, name=name)
    graph.inputs.append(value)
    graph.initializers.add(value)
    return value


def _add_update(graph: ir.Graph, linear: Linear, a: ir.Value, b: ir.Value) -> None:
    plain = linear.output
    turned_a, turned_b = (ir.node("Transpose", [side], {"perm": [1, 0]}) for side in (a, b))
    down = ir.node("MatMul", [linear.input, turned_a.outputs[0]])
    up = ir.node("MatMul", [down.outputs[0], turned_b.outputs[0]])
    users = list(plain.uses())
    added = ir.node("Add", [plain, up.outputs[0]])
    for use in users:
        use.node.replace_input_with(use.idx, added.outputs[0])
    graph.insert_after(linear.nodes[-1], [turned_a, down, turned_b, up, added])


def write_onnx_adapter(source: Source, path: Path) -> None:
    """The adapter for any graph of its base; what is at ``path`` is replaced once this is whole.

    ``adapter_version`` is the registry's, 1 for a folder; ``model_version`` are the first 28 bits
    of the base's fingerprint. Raises StorageError.
    """
    import onnxruntime as ort

    inputs = pack_adapter(source.weights, linear_shapes(source.base.config))
    manifest = source.manifest
    written = ort.AdapterFormat()
    written.set_adapter_version(manifest.version if isinstance(manifest, AdapterManifest) else 1)
    written.set_model_version(int(source.base.fingerprint[:7], 16))
    written.set_parameters(
        {name: ort.OrtValue.ortvalue_from_numpy(side.numpy()) for name, side in inputs.items()}
    )
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with storage_errors(path):
            written.export_adapter(str(temporary))
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
            temporary.replace(path)
            sync_folder(path.parent)
    except RuntimeError as error:  # onnxruntime does not say what the disk said
        raise StorageError(f"{path} cannot be written ({error}); is its disk full?") from error
    finally:
        temporary.unlink(missing_ok=True)


ADAPTERS = OnnxAdapters()
