"""Adapters as inputs of an ONNX graph that takes LoRA weights with each call.

Two inputs for every linear layer, ``{module}.lora_A.weight`` [rank, in] and
``{module}.lora_B.weight`` [out, rank], of any rank and float32. What is not given is zero, so an
adapter names the layers that it changes and no other. Its scaling is in B.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from artifacts.adapter import LoraWeights, check_adapter
from artifacts.errors import AdapterRejected, Corrupt, NotFound
from artifacts.exported.graph import AdapterInputs
from artifacts.exported.record import read_record

ADAPTERS_FOLDER = "adapters"
SUFFIX = ".onnx_adapter"
_INPUT_NAME = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])\.weight")

LinearShapes = Mapping[str, tuple[int, int]]  # module → (out, in)


def input_names(module: str) -> tuple[str, str]:
    """Of A and of B."""
    return f"{module}.lora_A.weight", f"{module}.lora_B.weight"


def adapter_shapes(session: Any) -> dict[str, tuple[int, int]]:
    """Module → (out, in) of the layers that take an adapter; nothing for a graph without."""
    shapes = {entry.name: entry.shape for entry in session.get_overridable_initializers()}
    found = {}
    for name in shapes:
        match = _INPUT_NAME.fullmatch(name)
        if match is not None and match["side"] == "A":
            a, b = input_names(match["module"])
            found[match["module"]] = (int(shapes[b][0]), int(shapes[a][1]))
    return found


def pack_adapter(weights: LoraWeights, shapes: LinearShapes) -> AdapterInputs:
    """Raises AdapterRejected for one that does not fit."""
    check_adapter(weights, shapes, max_rank=sys.maxsize)
    inputs = {}
    for module, pair in weights.pairs.items():
        a, b = input_names(module)
        inputs[a] = pair.a.float().contiguous()
        inputs[b] = (pair.scaling * pair.b.float()).contiguous()
    return inputs


def read_onnx_adapter(path: Path, shapes: LinearShapes) -> AdapterInputs:
    """A file that ``onnxruntime.AdapterFormat`` wrote, checked against the graph.

    Raises NotFound, Corrupt for a file that is something else, AdapterRejected for one that does
    not fit.
    """
    import onnxruntime as ort

    if not path.is_file():
        raise NotFound(f"there is no adapter file {path}")
    try:
        found = ort.AdapterFormat.read_adapter(str(path)).get_parameters()
    except RuntimeError as error:
        raise Corrupt(f"{path} is no whole {SUFFIX} file ({error}); export it again") from error
    # Copies: what numpy() returns lies in the file's own buffer, which nothing here keeps.
    inputs = {name: torch.from_numpy(value.numpy()).clone() for name, value in found.items()}
    check_inputs(inputs, shapes, path)
    return inputs


def adapter_file(folder: Path) -> Path:
    """The file that was exported with the graph in ``folder``. Raises Corrupt."""
    names = [name for name in read_record(folder).files if name.endswith(SUFFIX)]
    if len(names) != 1:
        raise Corrupt(f"{folder} records {len(names)} {SUFFIX} files, not one; export it again")
    return folder / names[0]


def check_inputs(inputs: AdapterInputs, shapes: LinearShapes, source: object) -> None:
    """AdapterRejected unless every layer has both sides, float32 and of its own sizes."""
    if not inputs:
        raise AdapterRejected("no_module", f"{source} changes no module")
    for name, tensor in inputs.items():
        match = _INPUT_NAME.fullmatch(name)
        if match is None or match["module"] not in shapes:
            raise AdapterRejected(
                "unknown_module",
                f"{source}: the graph has no input {name!r}; use the adapter with the graph of the "
                "base that it was trained on",
            )
        if tensor.dtype != torch.float32:
            raise AdapterRejected(
                "unsupported_dtype", f"{source}: {name} is {tensor.dtype}, the graph takes float32"
            )
        _check_sizes(match["module"], inputs, shapes[match["module"]], source)


def _check_sizes(
    module: str, inputs: AdapterInputs, shape: tuple[int, int], source: object
) -> None:
    a, b = (inputs.get(name) for name in input_names(module))
    if a is None or b is None:
        absent = "A" if a is None else "B"
        raise AdapterRejected("shape_mismatch", f"{source}: {module} has no lora_{absent}")
    out, inner = shape
    rank = a.shape[0] if a.dim() else 0
    if tuple(a.shape) != (rank, inner) or tuple(b.shape) != (out, rank) or rank == 0:
        raise AdapterRejected(
            "shape_mismatch",
            f"{source}: {module} has lora_A {list(a.shape)} and lora_B {list(b.shape)}; the graph "
            f"takes [rank, {inner}] and [{out}, rank]",
        )
