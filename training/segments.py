"""Attention over rows that lie end to end in one sequence, each blind to the others. No padding.

A batch is one sequence of all its rows' tokens: every product of the model then runs over real
tokens only. Measured on 2 cores at the 0.5B shape, rows of 54 tokens, batch of 8: 2.5 times the
tokens/s of a padded batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "loraloop_segments"


def use_segments(model: Any) -> None:
    """Lets ``model`` (transformers' or PEFT's) take ``segments``; without it nothing changes."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if base.config._attn_implementation != NAME:
        base.set_attn_implementation(NAME)


def no_mask(like: Tensor) -> Tensor:
    """An attention mask that transformers passes on as it is, instead of building one of T × T."""
    return like.new_zeros(1, 1, 1, 1)


def _attention(
    module: Any,
    query: Tensor,  # [1, heads, num_tokens, head_dim]
    key: Tensor,  # [1, kv_heads, num_tokens, head_dim]
    value: Tensor,
    attention_mask: Tensor | None,
    segments: list[int] | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each of ``segments``, which are lengths that add up to num_tokens.

    Without them it is transformers' own: a model can be trained and asked in turns.
    """
    if segments is None:
        attended: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **options
        )
        return attended
    queries, keys, values = (t.split(segments, dim=2) for t in (query, key, value))
    rows = zip(queries, keys, values, strict=True)
    pieces = [_row_attention(q, k, v, options) for q, k, v in rows]
    return torch.cat(pieces, dim=2).transpose(1, 2).contiguous(), None  # [1, tokens, heads, dim]


def _row_attention(query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any]) -> Tensor:
    """One row's, [1, heads, length, head_dim]."""
    num_tokens = query.shape[2]
    extra = rounded(query, num_tokens, 32) - num_tokens
    if extra:  # behind the row, where causal attention does not look
        query, key, value = (pad(t, (0, 0, 0, extra)) for t in (query, key, value))
    length, window = query.shape[2], options.get("sliding_window") or query.shape[2]
    is_cut = length > window
    attended = scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=_band(length, window, query.device) if is_cut else None,
        is_causal=not is_cut,
        dropout_p=options.get("dropout", 0.0),
        scale=options.get("scaling"),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return attended[:, :, :num_tokens]


def rounded(tensor: Tensor, count: int, step: int) -> int:
    """``count``, or the next multiple of ``step`` where every size costs a kernel of its own.

    oneDNN, which multiplies 16-bit matrices on CPUs, compiles one for each shape and keeps it: 120
    batches of different sizes took 1.3 GB on a base of 10 MB, rounded ones 0.3 GB and a third as
    long.
    """
    if tensor.is_cuda or tensor.dtype not in (torch.bfloat16, torch.float16):
        return count
    return -(-count // step) * step


def _band(length: int, window: int, device: torch.device) -> Tensor:
    """Which keys each query sees: itself and the ``window - 1`` before it."""
    ones = torch.ones(length, length, dtype=torch.bool, device=device)
    return ones.tril() & ones.triu(1 - window)


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
