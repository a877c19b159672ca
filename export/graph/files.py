"""A filled graph on disk: ``model.onnx``, and one file that holds every weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.external_data import convert_tensors_to_external

from export.forms.form import Progress
from export.graph.linears import dims

MODEL_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"
_ALIGNMENT = 4096  # bytes; a mapped weight then begins on a page of its own


def lazy(value: ir.Value, make: Callable[[], np.ndarray]) -> None:
    """Fills an initializer with what ``make`` returns when it is written, once it is wanted."""
    assert value.dtype is not None
    value.const_value = ir.LazyTensor(
        lambda: ir.tensor(make()), value.dtype, ir.Shape(dims(value)), name=value.name
    )


def initializer(graph: ir.Graph, name: str, dtype: ir.DataType, shape: list[int]) -> ir.Value:
    """A new one, still without content."""
    value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))
    graph.initializers.add(value)
    return value


def constant(graph: ir.Graph, numbers: list[int]) -> ir.Value:
    """int64, in the graph itself; the same numbers are the same initializer."""
    name = "of_" + "_".join(map(str, numbers)).replace("-", "minus_")
    if name not in graph.initializers:
        value = initializer(graph, name, ir.DataType.INT64, [len(numbers)])
        value.const_value = ir.tensor(np.array(numbers, np.int64), name=name)
    return graph.initializers[name]


def write_graph(
    model: ir.Model, folder: Path, progress: Progress, views: Mapping[str, str] | None = None
) -> Path:
    """Writes the lazy initializers one after the other, so one is in memory at a time.

    Args:
        views: initializer → another one whose bytes it is, perhaps in another shape.
    """
    named = model.graph.initializers
    lazies = [v for v in named.values() if isinstance(v.const_value, ir.LazyTensor)]
    tensors = [v.const_value for v in lazies if v.const_value is not None]
    written = convert_tensors_to_external(
        tensors,
        folder,
        DATA_FILE,
        callback=lambda _, info: progress(info.index, info.total, "writing weights"),
        alignment=_ALIGNMENT,
    )
    for value, tensor in zip(lazies, written, strict=True):
        value.const_value = tensor
    for name, target in (views or {}).items():
        value, seen = named[name], named[target].const_value
        assert isinstance(seen, ir.ExternalTensor)
        assert value.dtype is not None
        value.const_value = ir.ExternalTensor(
            seen.location,
            seen.offset,
            seen.length,
            value.dtype,
            shape=ir.Shape(dims(value)),
            name=name,
            base_dir=folder,
        )
        assert value.const_value.nbytes == seen.nbytes
    path = folder / MODEL_FILE
    ir.save(model, path)
    progress(len(lazies), len(lazies), "writing weights")
    return path
