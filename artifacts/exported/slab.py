"""transformers' own model classes behind the contract of `artifacts.exported.graph`.

The same module is traced by export and computes the forms that transformers loads. Attention is
ours: queries of one KV head are one matrix product, so keys and values are never repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.cache_utils import Cache

ATTENTION = "loraloop_slab"  # attn_implementation of models that are to be wrapped


def grouped_attention(
    module: nn.Module,
    query: Tensor,  # [num_rows, num_heads, length, head_dim]
    key: Tensor,  # [num_rows, num_kv_heads, capacity, head_dim]
    value: Tensor,
    attention_mask: Tensor,  # additive [num_rows, 1, length, capacity]
    scaling: float,
    **_: Any,  # dropout among them, which is for training
) -> tuple[Tensor, None]:
    """Softmax attention of transformers' AttentionInterface: [num_rows, length, num_heads, dim]."""
    rows, heads, length, width = query.shape
    kv_heads, capacity = key.shape[1], key.shape[2]
    group = heads // kv_heads
    stacked = (query * scaling).reshape(rows, kv_heads, group * length, width)
    scores = (stacked @ key.transpose(2, 3)).reshape(rows, heads, length, capacity)
    # In float32 whatever the model's format, as transformers has it.
    weights = torch.softmax(scores + attention_mask, dim=-1, dtype=torch.float32).to(value.dtype)
    mixed = weights.reshape(rows, kv_heads, group * length, capacity) @ value
    return mixed.reshape(rows, heads, length, width).transpose(1, 2), None


AttentionInterface.register(ATTENTION, grouped_attention)


class SlabCache(Cache):  # type: ignore[misc]
    """Writes new keys and values to their places; hands out the whole rows."""

    def __init__(self, past: Sequence[Tensor], places: Tensor, *, in_place: bool) -> None:
        self.layers: list[Any] = []
        self.present = list(past)
        self._places = places  # [num_rows, 1, length, 1]
        self._in_place = in_place

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        index = self._places.expand(key_states.shape)
        for i, new in ((2 * layer_idx, key_states), (2 * layer_idx + 1, value_states)):
            old = self.present[i]
            if self._in_place:
                old.scatter_(2, index, new)
            else:
                self.present[i] = old.scatter(2, index, new)
        return self.present[2 * layer_idx], self.present[2 * layer_idx + 1]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0


class SlabDecoder(nn.Module):
    """``(input_ids, position_ids, cache_start, attention_mask, logits_rows, past) -> logits``.

    Args:
        model: a transformers causal LM loaded with ``attn_implementation=ATTENTION``; PEFT's
            wrapping of one does as well.
        in_place: write into ``past``; else the new cache is returned behind the logits.
    """

    def __init__(self, model: Any, *, in_place: bool) -> None:
        super().__init__()
        self.model = model
        self._in_place = in_place

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        cache_start: Tensor,
        attention_mask: Tensor,
        logits_rows: Tensor,
        past: Sequence[Tensor],
    ) -> Tensor | tuple[Tensor, tuple[Tensor, ...]]:
        length, capacity = input_ids.shape[1], past[0].shape[2]
        device = input_ids.device
        places = cache_start[:, None] + torch.arange(length, device=device)[None]
        before = torch.arange(capacity, device=device)[None, None] <= places[:, :, None]
        seen = before & (attention_mask[:, None, :] > 0)  # [num_rows, length, capacity]
        # Finite, so that a row of padding, which sees nothing, does not become NaN.
        floor = torch.finfo(past[0].dtype).min
        bias = torch.where(seen, 0.0, floor).to(past[0].dtype)[:, None]
        cache = SlabCache(past, places[:, None, :, None], in_place=self._in_place)
        causal = self.model
        hidden = causal.model(
            input_ids=input_ids,
            position_ids=position_ids,
            attention_mask=bias,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        index = logits_rows[:, :, None].expand(-1, -1, hidden.shape[2])
        logits: Tensor = causal.lm_head(torch.gather(hidden, 1, index))
        return logits if self._in_place else (logits, tuple(cache.present))
