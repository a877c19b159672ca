"""Exported models for tests: one that checks what lies in its cache, and one that computes."""

from __future__ import annotations

import math
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from artifacts.adapter import LoraWeights
from artifacts.base import Base, load_transformers_model
from artifacts.exported.graph import AdapterInputs, GraphBatch, GraphShape
from artifacts.exported.slab import ATTENTION, SlabDecoder
from server.engine.engine import Engine
from server.engine.graph_cache import GraphCache
from server.engine.load import EngineLimits, answer_decoder, num_kv_tokens
from server.engine.load_export import packer
from server.engine.request import GenerationRequest, Result, TokenLogprob
from server.engine.runner_graph import GraphAdapter, GraphRunner
from server.engine.scheduler import Chunk, SchedulerLimits
from server.engine.spec import EngineSpec
from tests.server.engine.fake import VOCAB, FakePacked, FakeRunner, next_token
from tests.server.engine.served import Served


class HashModel:
    """Says what the fake runner says, of the tokens and the adapters that it finds in the cache."""

    shape = GraphShape(1, 1, 1, VOCAB, torch.float32)
    takes_adapters = True

    def __init__(self) -> None:
        self.adapters: list[str | None] = [None]  # what the cache calls them
        self._memory = torch.zeros(1 << 20)  # of all logits, as a session's bound output

    def run(
        self, batch: GraphBatch, cache: Rows[Tensor], adapter: AdapterInputs | None = None
    ) -> Tensor:
        check_batch(batch, cache)
        keys, values = cache
        number = 0 if adapter is None else int(adapter["number"])
        size = (*batch.logits_rows.shape, VOCAB)
        logits = self._memory[: math.prod(size)].view(size).zero_()
        for row, start in enumerate(batch.cache_start.tolist()):
            end = start + batch.input_ids.shape[1]
            keys[row, 0, start:end, 0] = batch.input_ids[row].float()
            values[row, 0, start:end, 0] = float(number)
            for i, token in enumerate(batch.logits_rows[row].tolist()):
                seen = start + token + 1
                tokens = [int(key) for key in keys[row, 0, :seen, 0].tolist()]
                owners = {self.adapters[int(n)] for n in values[row, 0, :seen, 0].tolist()}
                wanted = next_token(owners.pop() if len(owners) == 1 else "mixed", tokens)
                logits[row, i, wanted] = 9.0
        return logits

    def pack(self, weights: LoraWeights) -> AdapterInputs:
        self.adapters.append(cast("FakePacked", weights).key)
        return {"number": torch.tensor(len(self.adapters) - 1)}


class GraphBacked(FakeRunner):
    """The fake runner's faults around a real `GraphRunner`, found out at the end of a step."""

    def __init__(self, graph: GraphRunner, model: HashModel) -> None:
        super().__init__(block_size=4)
        self.graph = graph
        self._hashes = model

    def execute(self, chunks: Rows[Chunk], places: Rows[tuple[int, int] | None]) -> list[Result]:
        found = self.graph.execute(chunks, places)
        super().execute(chunks, places)
        return found

    def _run(self, chunk: Chunk, place: tuple[int, int] | None) -> Result:
        return None

    def write_adapter(self, first_row: int, adapter: Any) -> None:
        super().write_adapter(first_row, adapter)
        inputs = self._hashes.pack(adapter)
        self.graph.write_adapter(first_row, GraphAdapter(adapter.num_rows, inputs, 1))

    def scrub(self, blocks: Rows[int]) -> None:
        self.graph.scrub(blocks)


def check_batch(batch: GraphBatch, cache: Rows[Tensor]) -> None:
    """What every call must be, whatever computes it."""
    num_rows, num_places = cache[0].shape[0], cache[0].shape[2]
    for tensor in (batch.input_ids, batch.position_ids):
        assert tensor.shape == (num_rows, tensor.shape[1])
    assert batch.attention_mask.shape == (num_rows, num_places)
    inputs = (batch.input_ids, batch.position_ids, batch.cache_start, batch.attention_mask)
    for tensor in (*inputs, batch.logits_rows):
        assert tensor.dtype == torch.int64
        assert tensor.is_contiguous()
    assert all(tensor.is_contiguous() for tensor in cache)
    assert int(batch.cache_start.max()) + batch.input_ids.shape[1] <= num_places
    assert int(batch.logits_rows.max()) < batch.input_ids.shape[1]


@dataclass
class SlabModel:
    """transformers' own model behind the contract; adapters are added to its linear layers."""

    model: Any
    takes_adapters: bool = True
    lengths: list[tuple[int, int]] = field(default_factory=list)  # rows and tokens of each call

    def __post_init__(self) -> None:
        config = self.model.config
        width = config.head_dim or config.hidden_size // config.num_attention_heads
        self.shape = GraphShape(
            config.num_hidden_layers,
            config.num_key_value_heads,
            width,
            config.vocab_size,
            self.model.dtype,
        )
        self._decoder = SlabDecoder(self.model, in_place=True)
        self._adapter: AdapterInputs = {}
        for name, module in self.model.named_modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_hook(
                    lambda _, inputs, output, name=name: self._adapted(name, inputs[0], output)
                )

    def run(
        self, batch: GraphBatch, cache: Rows[Tensor], adapter: AdapterInputs | None = None
    ) -> Tensor:
        check_batch(batch, cache)
        self.lengths.append((batch.input_ids.shape[0], batch.input_ids.shape[1]))
        self._adapter = {} if adapter is None else adapter
        logits: Tensor = self._decoder(
            batch.input_ids,
            batch.position_ids,
            batch.cache_start,
            batch.attention_mask,
            batch.logits_rows,
            cache,
        )
        return logits.float()

    def pack(self, weights: LoraWeights) -> AdapterInputs:
        pairs = weights.pairs.items()
        return {f"{m}.A": p.a for m, p in pairs} | {f"{m}.B": p.scaling * p.b for m, p in pairs}

    def _adapted(self, name: str, x: Tensor, y: Tensor) -> Tensor:
        if f"{name}.A" not in self._adapter:
            return y
        return y + (x @ self._adapter[f"{name}.A"].T) @ self._adapter[f"{name}.B"].T


class GraphServed(Served):
    """`Served`, with a graph runner over the base in transformers."""

    def __enter__(self) -> GraphServed:
        super().__enter__()
        return self

    def __init__(self, base: Base, limits: EngineLimits, **options: Any) -> None:
        self.base = base
        loaded = load_transformers_model(base, attn_implementation=ATTENTION)
        self.model = SlabModel(loaded, **options)
        shape, max_len = self.model.shape, limits.max_model_len or base.context_length
        self.cache = GraphCache(shape, limits.max_num_seqs, max_len)
        self.runner = GraphRunner(self.model, self.cache, base.eos_token_ids)
        spec = EngineSpec(
            kernels="slab",
            max_model_len=max_len,
            max_rank=64,
            max_resident_adapters=limits.max_resident_adapters,
            num_adapter_rows=64 * limits.max_resident_adapters,
            num_blocks=num_kv_tokens(limits, max_len, 1) // 16,
            block_size=16,
            kv_bytes=0,
            vocab_size=shape.vocab_size,
            eos_token_ids=base.eos_token_ids,
            max_queue=limits.max_queue,
            scheduler=SchedulerLimits(limits.max_num_seqs, limits.max_batched_tokens),
            shares_prefixes=False,
        )
        decode = answer_decoder(base.tokenizer)
        self.engine = Engine(spec, self.runner, decode, packer(self.model))


def hashed_scores(request: GenerationRequest) -> tuple[TokenLogprob | None, ...]:
    """What `HashModel` finds of a prompt."""
    if request.sampling.prompt_logprobs is None:
        return ()
    found: list[TokenLogprob | None] = [None]
    for end in range(1, len(request.prompt_ids)):
        logits = torch.zeros(VOCAB)
        logits[next_token(request.adapter, request.prompt_ids[:end])] = 9.0
        token = request.prompt_ids[end]
        found.append(TokenLogprob(token, float(torch.log_softmax(logits, dim=-1)[token])))
    return tuple(found)
