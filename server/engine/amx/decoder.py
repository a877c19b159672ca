"""The Llama family's decoder on AMX: the same mathematics as `server.engine.decoder`, in bfloat16.

One call into C per step, whatever the batch holds. A row's result does not depend on the rows
around it: alone, batched, chunked, preempted or from the prefix cache, an answer is the same to
the last bit.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PretrainedConfig

from server.engine.amx.library import (
    DEPTH,
    STORE_F32,
    TILE,
    AttentionLayer,
    AttentionShape,
    Layer,
    Linear,
    LoraPlan,
    LoraSegment,
    LoraSlot,
    Model,
    Span,
    Step,
    huge_pages,
)
from server.engine.amx.weights import EPILOGUES, PackedLinear, Part, parts_of
from server.engine.decoder import DecoderShape, Weights
from server.engine.rope import rope_table


def shape_problem(shape: DecoderShape) -> str | None:
    """Why the kernels cannot run this shape; None if they can."""
    for name, size, unit in (
        ("hidden_size", shape.hidden, DEPTH),
        ("intermediate_size", shape.intermediate, DEPTH),
        ("head_dim", shape.head_dim, DEPTH),
        ("vocab_size", shape.vocab_size, TILE),
    ):
        if size % unit:
            return f"{name} {size} is no multiple of {unit}"
    return None


@dataclass(frozen=True, slots=True)
class DecoderLimits:
    """The most that one step may hold."""

    max_tokens: int
    max_seqs: int
    max_logits: int  # rows
    max_len: int
    max_rank: int


@dataclass(frozen=True, slots=True)
class PackedStep:
    """One step's tokens of all requests in a row, in plain memory that outlives the step."""

    token_ids: array[int]
    positions: array[int]
    slots: array[int]  # block * 16 + offset of each token
    blocks: array[int]  # cache blocks of all spans
    sampled_rows: array[int]  # rows whose next token is wanted
    spans: ctypes.Array[Span]  # they point into `blocks`
    segments: ctypes.Array[LoraSegment]  # by first row; empty: base requests only


class AmxCache:
    """Keys and values in blocks of 16 tokens, all layers of a block together.

    So memory is touched as it is needed, and a new block costs one page, not one per layer.
    """

    def __init__(self, shape: DecoderShape, num_blocks: int) -> None:
        self._layer_values = shape.kv_width * TILE  # keys of one layer in one block
        self.block_values = 2 * shape.num_layers * self._layer_values
        self._blocks = huge_pages(num_blocks * self.block_values).view(num_blocks, -1)

    @property
    def num_bytes(self) -> int:
        return self._blocks.nbytes

    def addresses(self, layer: int) -> tuple[int, int]:
        """Where a layer's keys and values of the first block begin."""
        keys = self._blocks.data_ptr() + 2 * layer * self._layer_values * self._blocks.itemsize
        return keys, keys + self._layer_values * self._blocks.itemsize

    def clear(self, blocks: list[int]) -> None:
        self._blocks[blocks] = 0


class Buffers:
    """Activations of one step; rows beyond it are never read into a result."""

    def __init__(self, shape: DecoderShape, limits: DecoderLimits) -> None:
        def rows(width: int, num: int) -> Tensor:
            return torch.zeros((-(-num // DEPTH) * DEPTH, width), dtype=torch.bfloat16)

        self.x = rows(shape.hidden, limits.max_tokens)
        self.normed = rows(shape.hidden, limits.max_tokens)
        self.qkv = rows(shape.q_width + 2 * shape.kv_width, limits.max_tokens)
        self.attended = rows(shape.q_width, limits.max_tokens)
        self.activated = rows(shape.intermediate, limits.max_tokens)
        self.picked = rows(shape.hidden, limits.max_logits)
        self.logits = torch.zeros((limits.max_logits, shape.vocab_size))
        # Where an adapter meets a tile of 16 rows: at most once per tile and once per adapter more.
        num_tiles = -(-limits.max_tokens // TILE)
        num_slots = num_tiles + limits.max_seqs
        self.slot_values = 3 * TILE * (-(-limits.max_rank // DEPTH) * DEPTH)
        self.lora_slots = (LoraSlot * num_slots)()
        self.first_slot = (ctypes.c_int32 * (num_tiles + 1))()
        self.lora_inner = torch.zeros(num_slots * self.slot_values, dtype=torch.bfloat16)


class AmxDecoder:
    """Embedding, layers, final norm and output product."""

    def __init__(
        self,
        library: ctypes.CDLL,
        config: PretrainedConfig,
        weights: Weights,
        cache: AmxCache,
        limits: DecoderLimits,
        on_layer: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self._library = library
        self.limits = limits
        self._shape = shape = DecoderShape.of(config)
        self._kept: list[object] = []  # what the C structures point at
        self._layers = (Layer * shape.num_layers)()
        for i in range(shape.num_layers):
            self._layers[i] = self._load_layer(i, weights, cache)
            on_layer(i + 1, shape.num_layers)
        head, embedding = self._load_ends(config, weights)
        cos, sin = rope_table(config, shape.head_dim, limits.max_len)
        attention = AttentionShape(
            shape.num_heads,
            shape.num_kv_heads,
            shape.head_dim,
            limits.max_len,
            shape.norm_eps,
            shape.head_dim**-0.5,
            self._keep(cos[:, : shape.head_dim // 2].contiguous()),
            self._keep(sin[:, : shape.head_dim // 2].contiguous()),
            cache.block_values,
        )
        self._model = Model(
            layers=self._layers,
            head=head,
            norm=self._keep(weights.take("model.norm.weight", shape.hidden).float()),
            embedding=embedding,
            attention=attention,
            num_layers=shape.num_layers,
            hidden=shape.hidden,
            inner=shape.intermediate,
            vocab=shape.vocab_size,
            num_threads=library.amx_num_threads(),
        )
        self._allocate(limits)

    def forward(self, step: PackedStep) -> Tensor:
        """Logits ``[num_sampled, vocab]`` in float32, valid until the next call.

        Raises:
            IndexError: a token outside the vocabulary.
        """
        num_sampled = len(step.sampled_rows)
        # C looks at no bounds.
        assert len(step.token_ids) <= self.limits.max_tokens, len(step.token_ids)
        assert num_sampled <= self.limits.max_logits, num_sampled
        assert len(step.spans) <= self.limits.max_seqs, len(step.spans)
        if not 0 <= min(step.token_ids) <= max(step.token_ids) < self._shape.vocab_size:
            raise IndexError(f"a token id is outside the vocabulary of {self._shape.vocab_size}")
        c_step = Step(
            *(a.buffer_info()[0] for a in (step.token_ids, step.positions, step.slots)),
            step.sampled_rows.buffer_info()[0],
            step.spans,
            step.segments,
            len(step.token_ids),
            num_sampled,
            len(step.spans),
            len(step.segments),
        )
        self._library.amx_forward(self._model, c_step)
        return self._buffers.logits[:num_sampled]

    def _keep(self, tensor: Tensor | None) -> int | None:
        """The address of a tensor that lives as long as the decoder."""
        self._kept.append(tensor)
        return None if tensor is None else tensor.data_ptr()

    def _load_layer(self, index: int, weights: Weights, cache: AmxCache) -> Layer:
        prefix, shape = f"model.layers.{index}.", self._shape
        layer = Layer(
            attention=AttentionLayer(
                *cache.addresses(index),
                *(
                    self._keep(None if norm is None else norm.float())
                    for norm in (
                        weights.optional(prefix + "self_attn.q_norm.weight", shape.head_dim),
                        weights.optional(prefix + "self_attn.k_norm.weight", shape.head_dim),
                    )
                ),
            ),
            input_norm=self._keep(
                weights.take(prefix + "input_layernorm.weight", shape.hidden).float()
            ),
            mlp_norm=self._keep(
                weights.take(prefix + "post_attention_layernorm.weight", shape.hidden).float()
            ),
        )
        products = zip(parts_of(shape, index), EPILOGUES, strict=True)
        for i, (parts, epilogue) in enumerate(products):
            linear = PackedLinear(
                self._library, parts, weights, epilogue=epilogue, index=4 * index + i
            )
            self._kept.append(linear)
            layer.linears[i] = linear.c
        return layer

    def _load_ends(self, config: PretrainedConfig, weights: Weights) -> tuple[Linear, int | None]:
        """The output product, and the embedding where it is another matrix."""
        is_tied = config.tie_word_embeddings
        name = "model.embed_tokens" if is_tied else "lm_head"
        part = Part(name, self._shape.vocab_size, self._shape.hidden, 0, 1)
        head = PackedLinear(self._library, [part], weights, epilogue=STORE_F32)
        self._kept.append(head)
        if is_tied:
            return head.c, None
        size = (self._shape.vocab_size, self._shape.hidden)
        return head.c, self._keep(weights.keep("model.embed_tokens.weight", *size).contiguous())

    def _allocate(self, limits: DecoderLimits) -> None:
        """Give the model its working memory."""
        self._buffers = b = Buffers(self._shape, limits)
        model, library = self._model, self._library
        for name in ("x", "normed", "qkv", "attended", "activated", "picked", "logits"):
            setattr(model, name, getattr(b, name).data_ptr())
        model.lora = LoraPlan(b.lora_slots, b.first_slot, b.lora_inner.data_ptr(), 0, b.slot_values)
        scratch = torch.empty(library.amx_scratch_values(limits.max_tokens))
        scores = torch.empty(library.amx_attention_scratch_values(model.attention))
        model.scratch, model.scores = self._keep(scratch), self._keep(scores)
