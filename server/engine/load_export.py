"""From an export on disk to an engine: what computes it is its own loader's affair."""

from __future__ import annotations

import torch

from artifacts.adapter import LoraWeights
from artifacts.base import Base
from artifacts.errors import Corrupt
from artifacts.exported.formats import format_named
from artifacts.exported.graph import ExportedModel, GraphShape
from artifacts.exported.load import open_export
from artifacts.exported.record import ExportRecord
from server.engine.engine import Engine
from server.engine.errors import UnsupportedModel
from server.engine.graph_cache import GraphCache
from server.engine.load import (
    BLOCK_SIZE,
    SMALL_MODEL_BYTES,
    EngineLimits,
    Pack,
    answer_decoder,
    context_length,
    num_kv_tokens,
)
from server.engine.runner_graph import GraphAdapter, GraphRunner
from server.engine.scheduler import SchedulerLimits
from server.engine.spec import EngineSpec


def build_export_engine(base: Base, limits: EngineLimits, options: dict[str, str]) -> Engine:
    """An engine for what ``loraloop export`` wrote, not yet started.

    ``options`` are settings of the other engines, as they were given; none of them may be anything
    but its default. Raises UnsupportedModel, Corrupt, and InvalidInput where a library is missing.
    """
    assert base.export is not None
    _refuse_options(base.export, options)
    num_threads = limits.num_threads or _default_threads(base.export)
    torch.set_num_threads(num_threads)
    model = open_export(base.path, num_threads=num_threads)
    _check_model(model, base)
    max_len = context_length(base, limits)
    token_bytes = _token_bytes(model.shape)
    num_blocks = -(-num_kv_tokens(limits, max_len, token_bytes) // BLOCK_SIZE)
    cache = GraphCache(model.shape, limits.max_num_seqs, max_len)
    num_places = limits.max_resident_adapters if base.takes_adapters else 0
    spec = EngineSpec(
        kernels=format_named(base.export.format).runtime,
        max_model_len=max_len,
        max_rank=limits.max_rank,
        max_resident_adapters=num_places,
        num_adapter_rows=num_places * limits.max_rank,
        num_blocks=num_blocks,
        block_size=BLOCK_SIZE,
        kv_bytes=num_blocks * BLOCK_SIZE * token_bytes,
        vocab_size=model.shape.vocab_size,
        eos_token_ids=base.eos_token_ids,
        max_queue=limits.max_queue,
        scheduler=SchedulerLimits(limits.max_num_seqs, limits.max_batched_tokens),
        shares_prefixes=False,
    )
    runner = GraphRunner(model, cache, base.eos_token_ids)
    return Engine(spec, runner, answer_decoder(base.tokenizer), packer(model))


def packer(model: ExportedModel) -> Pack:
    def pack(weights: LoraWeights) -> GraphAdapter:
        inputs = model.pack(weights)
        return GraphAdapter(weights.rank, inputs, sum(t.nbytes for t in inputs.values()))

    return pack


def _refuse_options(record: ExportRecord, options: dict[str, str]) -> None:
    for name, value in options.items():
        if value not in ("auto", "none"):
            raise UnsupportedModel(
                f"{name} {value!r} means nothing to an export of the form {record.format}, whose "
                "numbers and operations are fixed; leave it out, or export another form"
            )


def _default_threads(record: ExportRecord) -> int:
    """As for other bases: small models run on one thread."""
    num_bytes = sum(entry.num_bytes for entry in record.files.values())
    return 1 if num_bytes < SMALL_MODEL_BYTES else torch.get_num_threads()


def _check_model(model: ExportedModel, base: Base) -> None:
    """It must be what record and config.json describe: adapters and tokenizer go by these."""
    if base.takes_adapters and not model.takes_adapters:
        raise Corrupt(f"{base.path}: the model takes no adapters, its record says that it does")
    shape = model.shape
    found = (shape.num_layers, shape.vocab_size)
    wanted = (base.config.num_hidden_layers, base.config.vocab_size)
    if found != wanted:
        raise Corrupt(
            f"{base.path}: the model has {found[0]} layers and {found[1]} tokens, its config.json "
            f"says {wanted[0]} and {wanted[1]}; export it again"
        )


def _token_bytes(shape: GraphShape) -> int:
    """Keys and values of one token."""
    return 2 * shape.num_layers * shape.num_kv_heads * shape.head_dim * shape.cache_dtype.itemsize
