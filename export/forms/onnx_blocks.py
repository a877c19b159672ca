"""One ONNX graph with weights in blocks of 4 or 8 bits and a float32 cache, for CPUs above all."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from artifacts.architecture import tensor_shapes
from artifacts.errors import InvalidInput
from export.forms.form import Options, Workshop
from export.graph.blocks import Blocks, quantize
from export.graph.files import write_graph
from export.graph.skeleton import EMBEDDING, HEAD, OPSET
from export.source import MergedTensors, Source

_WIDER = {4: 8, 8: None}  # bits of embedding and lm_head where they are kept wider; None: float32


class OnnxBlocks:
    """An ``export.forms.form.Form``."""

    options = frozenset({"block_size", "keep_head"})

    def __init__(self, bits: int) -> None:
        self._bits = bits

    def check(self, source: Source, options: Options) -> None:
        for name, shape in tensor_shapes(source.base.config).items():
            if len(shape) == 2 and shape[1] % options.block_size:
                best = max(size for size in (16, 32, 64, 128, 256) if not shape[1] % size)
                raise InvalidInput(
                    f"block_size={options.block_size} does not divide the {shape[1]} inputs of "
                    f"{name}; use at most {best}",
                    param="block_size",
                )

    def num_bytes(self, source: Source, options: Options) -> int:
        body, head = self._forms(options)
        found = 0.0
        for name, shape in tensor_shapes(source.base.config).items():
            form = head if name in (EMBEDDING, HEAD) else body
            per_weight = 4.0
            if form is not None and len(shape) == 2:
                per_weight = form.bits / 8 + 4 / form.size
            found += math.prod(shape) * per_weight
        return int(found)

    def write(self, workshop: Workshop, options: Options, folder: Path) -> dict[str, Any]:
        model = workshop.skeleton(torch.float32)
        body, head = self._forms(options)
        views = quantize(model, MergedTensors(workshop.source), body, head)
        write_graph(model, folder, workshop.progress, views)
        return {
            "opset": OPSET,
            "weights": f"int{self._bits}",
            "embedding_and_head": "float32" if head is None else f"int{head.bits}",
            "block_size": options.block_size,
            "keep_head": options.keep_head,
            "is_symmetric": True,
            "activations": "int8",
            "cache": "float32",
        }

    def _forms(self, options: Options) -> tuple[Blocks, Blocks | None]:
        wider = _WIDER[self._bits] if options.keep_head else self._bits
        head = None if wider is None else Blocks(wider, options.block_size)
        return Blocks(self._bits, options.block_size), head


INT4 = OnnxBlocks(4)
INT8 = OnnxBlocks(8)
