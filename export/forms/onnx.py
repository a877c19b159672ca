"""One ONNX graph with its KV cache outside, in float32 or float16.

float16 is transformers' own half-precision program, with norms in float32, and a float16 cache.
It is meant for accelerators: ONNX Runtime's CPU has few float16 kernels, widens the weights once
when it loads them and keys and values of every step before their products.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from artifacts.architecture import tensor_shapes
from export.forms.form import Options, Workshop
from export.graph.files import write_graph
from export.graph.fill import fill
from export.graph.skeleton import OPSET
from export.source import MergedTensors, Source


class Onnx:
    """An ``export.forms.form.Form``."""

    options: frozenset[str] = frozenset()

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype

    def check(self, source: Source, options: Options) -> None:
        pass  # what opens as a base can be traced

    def num_bytes(self, source: Source, options: Options) -> int:
        shapes = tensor_shapes(source.base.config).values()
        return self._dtype.itemsize * sum(math.prod(shape) for shape in shapes)

    def write(self, workshop: Workshop, options: Options, folder: Path) -> dict[str, Any]:
        model = workshop.skeleton(self._dtype)
        fill(model, MergedTensors(workshop.source))
        write_graph(model, folder, workshop.progress)
        name = str(self._dtype).removeprefix("torch.")
        return {"opset": OPSET, "weights": name, "cache": name}


FLOAT32 = Onnx(torch.float32)
FLOAT16 = Onnx(torch.float16)
