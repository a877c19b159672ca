"""From transformers' classes to one ONNX graph with its KV cache outside. Knows no quantisation."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from artifacts.exported.graph import INPUT_NAMES
from artifacts.exported.slab import ATTENTION, SlabDecoder
from export.forms.form import Progress
from export.source import Source, merged_model

MODEL_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"
OPSET = 21
_NOISY_LOGGERS = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir", "torch._dynamo")


def export_graph(source: Source, folder: Path, progress: Progress) -> Path:
    """Writes ``model.onnx`` and its weights in ``model.onnx.data``, merged, float32."""
    progress(0, 3, "merging")
    model = merged_model(source, attention=ATTENTION)
    progress(1, 3, "tracing")
    program = trace(SlabDecoder(model, in_place=False))
    progress(2, 3, "writing the graph")
    path = folder / MODEL_FILE
    program.save(path, external_data=True)
    progress(3, 3, "writing the graph")
    return path


def trace(decoder: SlabDecoder) -> Any:
    """torch.onnx's program of a decoder that returns its cache; every size but the model's free."""
    config = decoder.model.config
    names = cache_names(config.num_hidden_layers)
    with _quiet(), torch.no_grad():
        return torch.onnx.export(
            decoder.eval(),
            _sample(config, next(decoder.parameters()).dtype),
            dynamo=True,
            dynamic_shapes=_dynamic_shapes(2 * config.num_hidden_layers),
            opset_version=OPSET,
            input_names=[*INPUT_NAMES, *(f"past_key_values.{name}" for name in names)],
            output_names=["logits", *(f"present.{name}" for name in names)],
            verbose=False,
        )


def cache_names(num_layers: int) -> list[str]:
    return [f"{i}.{side}" for i in range(num_layers) for side in ("key", "value")]


def _sample(config: Any, dtype: torch.dtype) -> tuple[Any, ...]:
    """Ragged and padded: what is all ones or all the same could be taken for a constant."""
    rows, length, capacity = 2, 3, 8
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    size = (rows, config.num_key_value_heads, capacity, width)
    mask = torch.tensor([[0, 1, 1, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0, 0]])
    past: tuple[Tensor, ...] = tuple(
        torch.zeros(size, dtype=dtype) for _ in range(2 * config.num_hidden_layers)
    )
    ids = torch.randint(0, config.vocab_size, (rows, length))
    positions = torch.tensor([[0, 0, 1], [0, 1, 2]])
    return ids, positions, torch.tensor([0, 0]), mask, torch.tensor([[2, 1], [2, 1]]), past


def _dynamic_shapes(num_cache: int) -> tuple[Any, ...]:
    dim = torch.export.Dim
    batch, length, capacity = dim("batch"), dim("length"), dim("capacity")
    tokens = {0: batch, 1: length}
    past = tuple({0: batch, 2: capacity} for _ in range(num_cache))
    return tokens, tokens, {0: batch}, {0: batch, 1: capacity}, {0: batch, 1: dim("logits")}, past


@contextmanager
def _quiet() -> Iterator[None]:
    """torch and onnxscript tell of their own passes, which say nothing about the result."""
    loggers = [logging.getLogger(name) for name in _NOISY_LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
