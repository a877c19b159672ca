"""The Llama family's decoder over packed batches: Llama, Qwen2, Qwen3 and Mistral by configuration.

Our own, because the module code of transformers costs more than the weights' read time on small
batches: here q/k/v and gate/up are one product each, adapters join the packed batch, and attention
is one call per layer. transformers remains the reference that tests compare with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PretrainedConfig

from artifacts.architecture import head_dim
from server.engine.bank import AdapterBank, GroupShape, LoraSegment
from server.engine.cache import AttentionPlan, KVCache
from server.engine.errors import UnsupportedModel
from server.engine.linear import Linear, Quantization, make_linear
from server.engine.rope import apply_rope, rope_table


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """What the configuration says about sizes."""

    num_layers: int
    hidden: int
    intermediate: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    norm_eps: float

    @classmethod
    def of(cls, config: PretrainedConfig) -> DecoderShape:
        """Read a transformers configuration that `artifacts.base.open_base` has accepted."""
        return cls(
            num_layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            head_dim=head_dim(config),
            vocab_size=config.vocab_size,
            norm_eps=config.rms_norm_eps,
        )

    @property
    def q_width(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.num_kv_heads * self.head_dim

    def lora_groups(self) -> list[GroupShape]:
        """Linears by shared input, in the order `DecoderLayer.forward` uses them."""
        groups: list[GroupShape] = []
        for i in range(self.num_layers):
            attn, mlp = f"model.layers.{i}.self_attn.", f"model.layers.{i}.mlp."
            qkv = (attn + "q_proj", attn + "k_proj", attn + "v_proj")
            kv = self.kv_width
            groups += [
                GroupShape(qkv, self.hidden, (self.q_width, kv, kv)),
                GroupShape((attn + "o_proj",), self.q_width, (self.hidden,)),
                GroupShape(
                    (mlp + "gate_proj", mlp + "up_proj"), self.hidden, (self.intermediate,) * 2
                ),
                GroupShape((mlp + "down_proj",), self.intermediate, (self.hidden,)),
            ]
        return groups


@dataclass(frozen=True, slots=True)
class PackedInput:
    """One step's tokens of all requests in a row; nothing is padded."""

    token_ids: Tensor  # [num_tokens]
    positions: Tensor  # [num_tokens]
    logits_rows: Tensor  # [num_sampled] tokens whose next token is wanted
    attention: AttentionPlan
    lora: tuple[LoraSegment, ...]  # empty: base requests only


class Weights:
    """Checkpoint tensors by name, converted when taken.

    What is taken may be a view into the mapped file: good for packing, not for keeping.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device
    ) -> None:
        self._tensors = tensors
        self.dtype = dtype
        self.device = device

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def take(self, name: str, *shape: int) -> Tensor:
        """A tensor, of this shape where one is given.

        Raises:
            UnsupportedModel: it is missing or of another shape.
        """
        if name not in self._tensors:
            raise UnsupportedModel(f"the checkpoint has no tensor {name!r}")
        tensor = self._tensors[name]
        if shape and tensor.shape != shape:
            raise UnsupportedModel(
                f"{name} is {list(tensor.shape)} in the checkpoint; by the configuration it is "
                f"{list(shape)}"
            )
        return tensor.to(device=self.device, dtype=self.dtype)

    def optional(self, name: str, *shape: int) -> Tensor | None:
        return self.take(name, *shape) if name in self else None

    def keep(self, name: str, *shape: int) -> Tensor:
        """A tensor in memory of our own. A file that shrinks under a mapping ends the process."""
        tensor = self.take(name, *shape)
        return tensor.clone() if tensor.device.type == "cpu" else tensor

    def keep_optional(self, name: str) -> Tensor | None:
        return self.keep(name) if name in self else None

    def linear(self, modules: tuple[str, ...], quantization: Quantization) -> Linear:
        """One product for linears that read the same input, outputs side by side."""
        weight = torch.cat([self.take(f"{m}.weight") for m in modules])
        biases = [self.optional(f"{m}.bias") for m in modules]
        present = [b for b in biases if b is not None]
        if present and len(present) != len(modules):
            raise UnsupportedModel(f"only some of {', '.join(modules)} have a bias")
        return make_linear(weight, torch.cat(present) if present else None, quantization)


class DecoderLayer:
    """Pre-norm attention and SwiGLU feed-forward, each with its adapters."""

    def __init__(
        self, index: int, shape: DecoderShape, weights: Weights, linears: Sequence[Linear]
    ) -> None:
        self._index = index
        self._shape = shape
        self._qkv, self._o, self._gate_up, self._down = linears
        prefix = f"model.layers.{index}."
        self._input_norm = weights.keep(prefix + "input_layernorm.weight")
        self._mlp_norm = weights.keep(prefix + "post_attention_layernorm.weight")
        self._q_norm = weights.keep_optional(prefix + "self_attn.q_norm.weight")
        self._k_norm = weights.keep_optional(prefix + "self_attn.k_norm.weight")

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        step: PackedInput,
        cache: KVCache,
        bank: AdapterBank,
    ) -> Tensor:
        """``x [num_tokens, hidden]`` to the same shape."""
        qkv_bank, o_bank, gate_up_bank, down_bank = bank.groups[4 * self._index :][:4]
        lora, shape = step.lora, self._shape

        h = self._norm(x, self._input_norm)
        qkv = self._qkv(h)  # [num_tokens, q_width + 2 * kv_width]
        if lora:
            qkv_bank.add(h, qkv, lora)
        attended = self._attend(qkv, rope, step.attention, cache)  # [num_tokens, q_width]
        out = self._o(attended)
        if lora:
            o_bank.add(attended, out, lora)
        x = x + out

        h = self._norm(x, self._mlp_norm)
        gate_up = self._gate_up(h)  # [num_tokens, 2 * intermediate]
        if lora:
            gate_up_bank.add(h, gate_up, lora)
        gate, up = gate_up.split(shape.intermediate, dim=-1)
        h = F.silu(gate) * up
        out = self._down(h)
        if lora:
            down_bank.add(h, out, lora)
        return x + out

    def _attend(
        self, qkv: Tensor, rope: tuple[Tensor, Tensor], plan: AttentionPlan, cache: KVCache
    ) -> Tensor:
        shape = self._shape
        heads = qkv.view(qkv.shape[0], -1, shape.head_dim)  # [num_tokens, q + k + v heads, dim]
        num_qk = shape.num_heads + shape.num_kv_heads
        qk, v = heads[:, :num_qk], heads[:, num_qk:]
        if self._q_norm is not None and self._k_norm is not None:
            q, k = qk.split((shape.num_heads, shape.num_kv_heads), dim=1)
            qk = torch.cat((self._norm(q, self._q_norm), self._norm(k, self._k_norm)), dim=1)
        q, k = apply_rope(qk, *rope).split((shape.num_heads, shape.num_kv_heads), dim=1)
        return cache.attend(self._index, q, k, v, plan)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, self._shape.norm_eps)


class Decoder:
    """Embedding, layers, final norm and output product."""

    def __init__(
        self,
        config: PretrainedConfig,
        weights: Weights,
        *,
        max_len: int,
        quantization: Quantization = "none",
        on_layer: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self.shape = DecoderShape.of(config)
        self._embedding = weights.keep("model.embed_tokens.weight")
        self._layers: list[DecoderLayer] = []
        groups = self.shape.lora_groups()
        for i in range(self.shape.num_layers):
            linears = [weights.linear(g.modules, quantization) for g in groups[4 * i : 4 * i + 4]]
            self._layers.append(DecoderLayer(i, self.shape, weights, linears))
            on_layer(i + 1, self.shape.num_layers)
        self._norm = weights.keep("model.norm.weight")
        # Embedding and output product stay 16-bit under quantisation: rounding them costs most.
        head = "model.embed_tokens" if config.tie_word_embeddings else "lm_head"
        self._head = make_linear(weights.take(f"{head}.weight"), None, "none")
        cos, sin = rope_table(config, self.shape.head_dim, max_len)
        self._cos = cos.to(device=weights.device, dtype=weights.dtype)[:, None]
        self._sin = sin.to(device=weights.device, dtype=weights.dtype)[:, None]

    def forward(self, step: PackedInput, cache: KVCache, bank: AdapterBank) -> Tensor:
        """Logits ``[num_sampled, vocab]`` in float32; the cache gains the step's K/V."""
        x = self._embedding[step.token_ids]  # [num_tokens, hidden]
        rope = (self._cos[step.positions], self._sin[step.positions])
        for layer in self._layers:
            x = layer.forward(x, rope, step, cache, bank)
        x = F.rms_norm(x[step.logits_rows], self._norm.shape, self._norm, self.shape.norm_eps)
        return self._head(x).float()
