"""From a base on disk to a running engine: sizes, weights, cache, bank, warm-up."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import PretrainedConfig

from artifacts.base import Base, Checkpoint, tensor_files
from artifacts.marks import hidden_ids
from server.engine.amx.decoder import AmxCache, AmxDecoder, DecoderLimits, shape_problem
from server.engine.amx.library import open_library, why_not
from server.engine.amx.weights import PackedLora
from server.engine.bank import AdapterBank
from server.engine.cache import CacheShape, KVCache
from server.engine.decoder import Decoder, DecoderShape, Weights
from server.engine.engine import Engine
from server.engine.errors import UnsupportedModel
from server.engine.linear import Quantization
from server.engine.output import Decode
from server.engine.runner import Runner, TorchRunner
from server.engine.runner_amx import AmxRunner
from server.engine.scheduler import MAX_SCORED, SchedulerLimits
from server.engine.spec import EngineSpec

logger = logging.getLogger(__name__)

BLOCK_SIZE = 16
DEFAULT_KV_BYTES = 1 << 30
SMALL_MODEL_BYTES = 64 << 20
Kernels = Literal["auto", "amx", "torch"]
Pack = Callable[..., Any]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What the operator may set. None means: derive it from the base."""

    max_model_len: int | None = None
    max_num_seqs: int = 32
    max_batched_tokens: int = 512
    kv_cache_tokens: int | None = None
    max_resident_adapters: int = 8
    max_rank: int = 64
    max_queue: int = 256
    num_threads: int | None = None


def build_engine(
    base: Base,
    *,
    dtype: str = "auto",
    quantization: Quantization = "none",
    kernels: Kernels = "auto",
    limits: EngineLimits | None = None,
    on_layer: Callable[[int, int], None] = lambda done, total: None,
) -> Engine:
    """Load a base and make an engine for it, not yet started.

    Args:
        dtype: ``auto`` takes the checkpoint's own.
        kernels: ``auto`` takes ``amx`` where machine, type and shape allow it.
        on_layer: called with (layers loaded, layers in all), for a progress bar.

    Raises:
        UnsupportedModel: the configuration or the settings ask for something the engine lacks.
    """
    limits = limits or EngineLimits()
    if base.export is not None:
        from server.engine.load_export import build_export_engine

        options = {"dtype": dtype, "quantization": quantization, "kernels": kernels}
        return build_export_engine(base, limits, options)
    torch.set_num_threads(limits.num_threads or _default_threads(base))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch_dtype = resolve_dtype(base.config, dtype)
    shape = DecoderShape.of(base.config)
    max_len = context_length(base, limits)
    cache_shape = _cache_shape(shape, limits, max_len, torch_dtype)
    num_rows = limits.max_resident_adapters * limits.max_rank
    weights = Weights(Checkpoint(base), torch_dtype, device)
    plan = ModelPlan(base, weights, shape, cache_shape, limits, max_len, on_layer)
    chosen = _choose_kernels(kernels, torch_dtype, quantization, shape)
    if chosen == "amx":
        runner, pack, kv_bytes = _amx(plan)
    else:
        runner, pack, kv_bytes = _torch(plan, quantization, num_rows)
    spec = EngineSpec(
        kernels=chosen,
        max_model_len=max_len,
        max_rank=limits.max_rank,
        max_resident_adapters=limits.max_resident_adapters,
        num_adapter_rows=num_rows,
        num_blocks=cache_shape.num_blocks,
        block_size=BLOCK_SIZE,
        kv_bytes=kv_bytes,
        vocab_size=shape.vocab_size,
        eos_token_ids=base.eos_token_ids,
        max_queue=limits.max_queue,
        scheduler=SchedulerLimits(limits.max_num_seqs, limits.max_batched_tokens),
    )
    return Engine(spec, runner, answer_decoder(base.tokenizer), pack)


def answer_decoder(tokenizer: Any) -> Decode:
    """From the ids of an answer to its text: marks of thoughts and calls in it, control out."""
    hidden, backend = hidden_ids(tokenizer), tokenizer.backend_tokenizer

    def decode(ids: list[int]) -> str:
        # Ids that only pad the vocabulary to a round size have no text.
        shown = [i for i in ids if i not in hidden]
        text: str = backend.decode(shown, skip_special_tokens=False)
        return text

    return decode


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """What both kinds of kernels need to know to make a runner."""

    base: Base
    weights: Weights
    shape: DecoderShape
    cache_shape: CacheShape
    limits: EngineLimits
    max_len: int
    on_layer: Callable[[int, int], None]


def _amx(plan: ModelPlan) -> tuple[Runner, Pack, int]:
    library = open_library(torch.get_num_threads())
    cache = AmxCache(plan.shape, plan.cache_shape.num_blocks)
    limits = plan.limits
    decoder_limits = DecoderLimits(
        limits.max_batched_tokens,
        limits.max_num_seqs,
        limits.max_num_seqs + MAX_SCORED,
        plan.max_len,
        limits.max_rank,
    )
    decoder = AmxDecoder(
        library, plan.base.config, plan.weights, cache, decoder_limits, plan.on_layer
    )
    runner = AmxRunner(decoder, cache, plan.base.eos_token_ids)
    return runner, lambda weights: PackedLora(library, plan.shape, weights), cache.num_bytes


def _torch(plan: ModelPlan, quantization: Quantization, num_rows: int) -> tuple[Runner, Pack, int]:
    weights = plan.weights
    decoder = Decoder(
        plan.base.config,
        weights,
        max_len=plan.max_len,
        quantization=quantization,
        on_layer=plan.on_layer,
    )
    cache = KVCache(plan.cache_shape, weights.dtype, weights.device)
    bank = AdapterBank(plan.shape.lora_groups(), num_rows, weights.dtype, weights.device)
    runner = TorchRunner(decoder, cache, bank, plan.base.eos_token_ids, weights.device)
    return runner, bank.pack, cache.num_bytes


def _choose_kernels(
    wanted: Kernels, dtype: torch.dtype, quantization: Quantization, shape: DecoderShape
) -> Kernels:
    """``amx`` where it can run and ``torch`` elsewhere; the log says why."""
    if wanted == "torch":
        return "torch"
    reason = None
    if torch.cuda.is_available():
        reason = "there is a GPU"
    elif dtype != torch.bfloat16:
        reason = f"the compute type is {dtype}, not bfloat16"
    elif quantization != "none":
        reason = f"the base is quantised to {quantization}"
    reason = reason or why_not() or shape_problem(shape)
    if reason is None:
        return "amx"
    if wanted == "amx":
        raise UnsupportedModel(f"kernels amx cannot be used: {reason}; choose auto or torch")
    logger.info("kernels: torch, not amx: %s", reason)
    return "torch"


def _default_threads(base: Base) -> int:
    """Small models run on one thread: handing a product of microseconds over costs more than it
    saves, and the HTTP side needs a core too."""
    num_bytes = sum(f.stat().st_size for f in tensor_files(base.path))
    return 1 if num_bytes < SMALL_MODEL_BYTES else torch.get_num_threads()


def resolve_dtype(config: PretrainedConfig, dtype: str) -> torch.dtype:
    """The compute type for ``auto|float32|bfloat16|float16``."""
    if dtype == "auto":
        found = config.dtype if config.dtype is not None else torch.float32
        if found not in DTYPES.values():
            known = ", ".join(DTYPES)
            raise UnsupportedModel(f"the base's dtype is {found}; choose one with --dtype: {known}")
        return found
    if dtype not in DTYPES:
        raise UnsupportedModel(f"dtype {dtype!r} is unknown; use auto, {', '.join(DTYPES)}")
    if dtype == "float16" and not torch.cuda.is_available():
        raise UnsupportedModel("dtype float16 needs a GPU; use bfloat16 or float32 on a CPU")
    return DTYPES[dtype]


def context_length(base: Base, limits: EngineLimits) -> int:
    """Tokens of a prompt and its answer. Raises UnsupportedModel."""
    wanted = limits.max_model_len
    if wanted is None:
        length: int = base.context_length
        return length
    if not 0 < wanted <= base.context_length:
        raise UnsupportedModel(
            f"max_model_len {wanted} is outside 1 … {base.context_length}, the base's own context"
        )
    return wanted


def num_kv_tokens(limits: EngineLimits, max_len: int, token_bytes: int) -> int:
    """As many as asked for, else what fits `DEFAULT_KV_BYTES` and could ever be used.

    Raises UnsupportedModel.
    """
    num_tokens = limits.kv_cache_tokens
    if num_tokens is None:
        num_tokens = max(
            min(DEFAULT_KV_BYTES // token_bytes, limits.max_num_seqs * max_len), max_len
        )
    if num_tokens < BLOCK_SIZE:
        raise UnsupportedModel(
            f"kv_cache_tokens {num_tokens} is smaller than one block of {BLOCK_SIZE} tokens"
        )
    return num_tokens


def _cache_shape(
    shape: DecoderShape, limits: EngineLimits, max_len: int, dtype: torch.dtype
) -> CacheShape:
    token_bytes = 2 * shape.num_layers * shape.kv_width * dtype.itemsize
    return CacheShape(
        num_layers=shape.num_layers,
        num_blocks=-(-num_kv_tokens(limits, max_len, token_bytes) // BLOCK_SIZE),
        block_size=BLOCK_SIZE,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
    )
