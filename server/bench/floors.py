"""What a load must cost on a machine: bytes read per decode step, operations per prompt.

Decoding reads every weight once per step, whatever the batch, besides the matrices of the adapters
in it and the keys and values of its requests. A prompt costs its matrix products. Nothing here
overlaps requests in time or counts activations, so a floor cannot be reached, only approached.
Pure arithmetic: no tensors, no clock.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from artifacts.architecture import head_dim, linear_shapes
from server.bench.machine import Ceilings


@dataclass(frozen=True, slots=True)
class BaseCost:
    """What one base costs to run, per token or step; parameters and bytes of its compute type."""

    item_bytes: int
    num_linear: int  # parameters of the linears inside the layers
    num_head: int  # parameters of lm_head
    num_small: int  # norms and biases
    kv_bytes_per_token: int
    attention_flop: int  # per pair of query and key, all layers
    adapter_width: int  # sum over linears of (in + out): parameters of a rank-1 adapter
    is_tied: bool  # lm_head is the embedding table

    @property
    def step_bytes(self) -> int:
        """Read by every step. An embedding table that is not also lm_head is not: only rows."""
        return self.item_bytes * (self.num_linear + self.num_head + self.num_small)

    @property
    def stored_bytes(self) -> int:
        """All weights."""
        return self.step_bytes + (0 if self.is_tied else self.item_bytes * self.num_head)

    def adapter_bytes(self, rank: int) -> int:
        """A and B of one all-linear adapter."""
        return self.item_bytes * self.adapter_width * rank


@dataclass(frozen=True, slots=True)
class Traffic:
    """Requests that start together: their number and lengths, and the adapters they use."""

    num_streams: int
    num_prompt: int
    num_new: int
    adapter_ranks: tuple[int, ...] = ()  # one entry per different adapter
    rank_per_token: int = 0  # rank that each token's own adapter has, 0 for the base


def cost_of(config: Any, item_bytes: int) -> BaseCost:
    """The cost of a base by its configuration."""
    shapes = linear_shapes(config).values()
    hidden, layers = config.hidden_size, config.num_hidden_layers
    width = config.num_attention_heads * head_dim(config)
    kv_width = config.num_key_value_heads * head_dim(config)
    has_bias = config.model_type == "qwen2" or bool(getattr(config, "attention_bias", False))
    biases = (width + 2 * kv_width) * layers if has_bias else 0
    return BaseCost(
        item_bytes=item_bytes,
        num_linear=sum(n_out * n_in for n_out, n_in in shapes),
        num_head=config.vocab_size * hidden,
        num_small=hidden * (2 * layers + 1) + biases,
        kv_bytes_per_token=2 * layers * kv_width * item_bytes,
        attention_flop=4 * width * layers,
        adapter_width=sum(n_out + n_in for n_out, n_in in shapes),
        is_tied=bool(config.tie_word_embeddings),
    )


def prefill_s(
    cost: BaseCost, traffic: Traffic, ceilings: Ceilings, *, num_cached: int = 0
) -> float:
    """Seconds until every prompt of the traffic is in the cache and has its first token.

    ``num_cached`` tokens of each prompt are in the cache already.
    """
    num_new = traffic.num_prompt - num_cached
    pairs = _causal_pairs(traffic.num_prompt) - _causal_pairs(num_cached)
    per_token = cost.num_linear + cost.adapter_width * traffic.rank_per_token
    flop = 2 * per_token * num_new + cost.attention_flop * pairs + 2 * cost.num_head
    flop_s = traffic.num_streams * flop / ceilings.matmul_flop_s
    return max(flop_s, cost.step_bytes / ceilings.read_bytes_s)


def step_s(cost: BaseCost, traffic: Traffic, ceilings: Ceilings) -> float:
    """Seconds of one decode step in the middle of the answers."""
    num_context = traffic.num_prompt + traffic.num_new // 2
    kv_bytes = traffic.num_streams * num_context * cost.kv_bytes_per_token
    adapter_bytes = sum(cost.adapter_bytes(rank) for rank in traffic.adapter_ranks)
    read_s = (cost.step_bytes + adapter_bytes + kv_bytes) / ceilings.read_bytes_s
    per_token = (
        cost.num_linear + cost.num_head + cost.adapter_width * traffic.rank_per_token
    )  # parameters multiplied per token
    flop = 2 * per_token + cost.attention_flop * num_context
    return max(read_s, traffic.num_streams * flop / ceilings.matmul_flop_s)


def whole_s(cost: BaseCost, traffic: Traffic, ceilings: Ceilings) -> float:
    """Seconds of the whole requests: prompts, then a step for every further token."""
    steps = (traffic.num_new - 1) * step_s(cost, traffic, ceilings)
    return prefill_s(cost, traffic, ceilings) + steps


def tokens_per_s(cost: BaseCost, traffic: Traffic, ceilings: Ceilings) -> float:
    """The bound on output tokens per second over whole requests."""
    return traffic.num_streams * traffic.num_new / whole_s(cost, traffic, ceilings)


def percentile(values: list[float], q: float) -> float:
    """The smallest value that ``q`` per cent of the values do not exceed; of at least one value."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(q / 100 * len(ordered)) - 1)]


def _causal_pairs(num_tokens: int) -> int:
    return num_tokens * (num_tokens + 1) // 2
