"""The ONNX graph of a decoder without its weights: traced once, in no memory to speak of.

What is traced are transformers' own classes. Every weight is an initializer with the checkpoint's
name and without content, so whoever fills them decides on number format and layout.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from onnxscript import optimizer
from onnxscript.rewriter.rules.fusion import _rms_normalization, _rotary_embedding
from torch import Tensor, nn

from artifacts.architecture import EMBEDDING, HEAD
from artifacts.exported.graph import INPUT_NAMES
from artifacts.exported.slab import ATTENTION, SlabDecoder

OPSET = 23  # the first with RMSNormalization and RotaryEmbedding
_PREFIX = "model."  # SlabDecoder's name for the model
_NOISY_LOGGERS = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir", "torch._dynamo")


def skeleton(config: Any, dtype: torch.dtype = torch.float32) -> ir.Model:
    """The graph of `artifacts.exported.graph` for a transformers configuration."""
    decoder = SlabDecoder(_hollow_model(config, dtype), in_place=False)
    names = _cache_names(config)
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            decoder.eval(),
            _sample(config, dtype),
            dynamo=True,
            dynamic_shapes=_dynamic_shapes(2 * config.num_hidden_layers),
            opset_version=OPSET,
            input_names=[*INPUT_NAMES, *(f"past_key_values.{name}" for name in names)],
            output_names=["logits", *(f"present.{name}" for name in names)],
            optimize=False,
            verbose=False,
        )
        assert program is not None
        model: ir.Model = program.model
        weights = {name for name, _ in decoder.named_parameters(remove_duplicate=False)}
        _simplify(model, weights, config.tie_word_embeddings)
    return model


def _hollow_model(config: Any, dtype: torch.dtype) -> Any:
    """transformers' model whose weights are each one zero, seen in the weight's shape."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=ATTENTION)
    rotary = model.model.rotary_emb
    model.model.rotary_emb = type(rotary)(config)  # its frequencies are no weights: they are real
    for name, parameter in list(model.named_parameters()):
        module, _, leaf = name.rpartition(".")
        zero = torch.zeros(1, dtype=dtype)  # not one for all: torch would look for aliases
        hollow = nn.Parameter(zero.expand(parameter.shape), requires_grad=False)
        setattr(model.get_submodule(module), leaf, hollow)
    model.tie_weights()
    return model


def _simplify(model: ir.Model, weights: set[str], is_tied: bool) -> None:
    """Folds and fuses everything but the weights, and forgets which source lines they came from.

    Weights are inputs meanwhile: hollow as they are, all of one shape would be taken for one.
    """
    graph = model.graph
    found = [value for name, value in graph.initializers.items() if name in weights]
    for value in found:
        del graph.initializers[str(value.name)]
        value.const_value = None
        graph.inputs.append(value)
    optimizer.optimize_ir(model)
    _rms_normalization.fuse_rms_normalization(model)
    _rotary_embedding.fuse_rotary_embedding(model)
    optimizer.optimize_ir(model)
    ClearMetadataAndDocStringPass()(model)
    for value in found:
        graph.inputs.remove(value)
        name = str(value.name).removeprefix(_PREFIX)
        value.name = EMBEDDING if name == HEAD and is_tied else name
        graph.initializers.add(value)


def _cache_names(config: Any) -> list[str]:
    return [f"{i}.{side}" for i in range(config.num_hidden_layers) for side in ("key", "value")]


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
