"""Traced modules in torch alone: nothing here needs transformers, and C++ loads the same file.

TorchScript is a language of its own: opening a file runs no Python of whoever wrote it.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from artifacts.adapter import LoraWeights
from artifacts.errors import Corrupt, InvalidInput
from artifacts.exported.graph import INPUT_NAMES, AdapterInputs, GraphBatch, GraphShape

MODEL_FILE = "model.ts"
SHAPE_ENTRY = "loraloop.json"  # a file inside of the archive: what GraphShape says
_SIZES = ("num_layers", "num_kv_heads", "head_dim", "vocab_size")


class TorchScriptModel:
    """A loaded archive, on the CPU, in the number format of its cache."""

    takes_adapters = False

    def __init__(self, module: Any, shape: GraphShape) -> None:
        self.shape = shape
        self._module = module

    @torch.no_grad()
    def run(
        self, batch: GraphBatch, cache: Sequence[Tensor], adapter: AdapterInputs | None = None
    ) -> Tensor:
        """See `ExportedModel`."""
        if adapter is not None:
            raise InvalidInput("this export takes no adapter: its own is merged", param="adapter")
        inputs = [getattr(batch, name) for name in INPUT_NAMES]
        logits: Tensor = self._module(*inputs, list(cache))
        return logits.float()

    def pack(self, weights: LoraWeights) -> AdapterInputs:
        raise InvalidInput("this export takes no adapter: its own is merged", param="adapter")


def load_torchscript(folder: Path, *, num_threads: int | None = None) -> TorchScriptModel:
    """``num_threads`` holds for the whole process, as torch wants it.

    Raises Corrupt for a file that is gone, broken or not of ours.
    """
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    path = folder / MODEL_FILE
    entries = {SHAPE_ENTRY: ""}
    try:
        with warnings.catch_warnings():  # torch would rather see torch.export used
            warnings.simplefilter("ignore", DeprecationWarning)
            module = torch.jit.load(path, map_location="cpu", _extra_files=entries)
        model = TorchScriptModel(module, shape_of(entries[SHAPE_ENTRY]))
        _warm_up(model)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Corrupt(
            f"{path} cannot be loaded ({type(error).__name__}: {error}); export it again"
        ) from error
    return model


def shape_text(shape: GraphShape) -> str:
    """What `shape_of` reads."""
    said = asdict(shape)
    sizes: dict[str, Any] = {name: said[name] for name in _SIZES}
    return json.dumps(sizes | {"cache_dtype": str(shape.cache_dtype).removeprefix("torch.")})


def shape_of(text: str | bytes) -> GraphShape:
    """Raises ValueError, KeyError, TypeError and AttributeError for anything else."""
    said = json.loads(text)
    sizes: dict[str, Any] = {name: int(said[name]) for name in _SIZES}
    return GraphShape(**sizes, cache_dtype=getattr(torch, said["cache_dtype"]))


def _warm_up(model: TorchScriptModel) -> None:
    """torch watches the first call and optimises on the second: no request is to wait for that."""
    zero, one = torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1, dtype=torch.int64)
    cache = model.shape.new_cache(1, 1)
    for _ in range(2):
        model.run(GraphBatch(zero, zero, zero[0], one, zero), cache)
