"""One ONNX graph with weights in blocks of 4 or 8 bits and a float32 cache, for CPUs above all."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import torch

from artifacts.architecture import EMBEDDING, HEAD, tensor_shapes
from artifacts.errors import InvalidInput
from export.block_format import Blocks, Quantized
from export.calibration.calibrate import calibrate, check_calibration
from export.forms.form import Options, Workshop
from export.graph.blocks import Quantizer, quantize
from export.graph.files import write_graph
from export.graph.skeleton import OPSET
from export.source import MergedTensors, Source

_WIDER = {4: 8, 8: None}  # bits of embedding and lm_head where they are kept wider; None: float32
# Small products whose rounding costs most: 8 bits in a graph of 4.
_SENSITIVE = ("self_attn.v_proj.weight", "self_attn.o_proj.weight")


class OnnxBlocks:
    """An ``export.forms.form.Form``."""

    def __init__(self, bits: int) -> None:
        self._bits = bits
        own = {"calibrate"} if bits == 4 else set()  # 8 bits lose nothing to speak of
        self.options = frozenset({"block_size", "keep_head", *own})

    def check(self, source: Source, options: Options) -> None:
        for name, shape in tensor_shapes(source.base.config).items():
            if len(shape) == 2 and shape[1] % options.block_size:
                best = max(size for size in (16, 32, 64, 128, 256) if not shape[1] % size)
                raise InvalidInput(
                    f"block_size={options.block_size} does not divide the {shape[1]} inputs of "
                    f"{name}; use at most {best}",
                    param="block_size",
                )
        if self._is_calibrated(options):
            check_calibration(source)

    def num_bytes(self, source: Source, options: Options) -> int:
        found = 0.0
        for name, shape in tensor_shapes(source.base.config).items():
            form = self._form(options, name)
            per_weight = 4.0
            if form is not None and len(shape) == 2:
                per_weight = form.bits / 8 + 4 / form.size
            found += math.prod(shape) * per_weight
        return int(found)

    def write(self, workshop: Workshop, options: Options, folder: Path) -> dict[str, Any]:
        source, form_of = workshop.source, partial(self._form, options)
        given: dict[str, Quantized] = {}
        if self._is_calibrated(options):
            given = calibrate(source, form_of, workshop.progress)
        model = workshop.skeleton(torch.float32)
        views = quantize(model, Quantizer(MergedTensors(source), form_of, given))
        write_graph(model, folder, workshop.progress, views)
        head = self._form(options, EMBEDDING)
        return {
            "opset": OPSET,
            "weights": f"int{self._bits}",
            "values_and_outputs_of_attention": "int8",
            "embedding_and_head": "float32" if head is None else f"int{head.bits}",
            "block_size": options.block_size,
            "keep_head": options.keep_head,
            "is_symmetric": True,
            "is_calibrated": bool(given),
            "activations": "int8",
            "cache": "float32",
        }

    def _is_calibrated(self, options: Options) -> bool:
        return self._bits == 4 and options.calibrate

    def _form(self, options: Options, name: str) -> Blocks | None:
        """How the weight of that name is stored; None: in float32."""
        bits: int | None = self._bits
        if name in (EMBEDDING, HEAD) and options.keep_head:
            bits = _WIDER[self._bits]
        elif name.endswith(_SENSITIVE):
            bits = 8
        is_searched = bits == 4 and name in (EMBEDDING, HEAD)
        return None if bits is None else Blocks(bits, options.block_size, is_searched)


INT4 = OnnxBlocks(4)
INT8 = OnnxBlocks(8)
