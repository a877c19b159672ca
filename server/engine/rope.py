"""Rotary position embedding (Su et al., 2021) with the frequency scalings of released models."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from server.engine.errors import UnsupportedModel

# "dynamic" and "longrope" change frequencies with the length of each request, so two requests of
# one batch would need different tables; they are refused rather than approximated.
SCALINGS = ("linear", "llama3", "yarn")


def rope_table(config: PretrainedConfig, head_dim: int, max_len: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each ``[max_len, head_dim]`` in float32."""
    parameters = dict(config.rope_parameters)
    rope_type = parameters.get("rope_type", "default")
    if parameters.get("partial_rotary_factor", 1.0) != 1.0:
        raise UnsupportedModel(
            "partial rotary embeddings (partial_rotary_factor) are not supported"
        )
    if rope_type == "default":
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
        inv_freq, scale = 1.0 / (parameters["rope_theta"] ** exponents), 1.0
    elif rope_type in SCALINGS:
        inv_freq, scale = ROPE_INIT_FUNCTIONS[rope_type](config, torch.device("cpu"))
    else:
        raise UnsupportedModel(
            f"rope_type {rope_type!r} is not supported; known: default, {', '.join(SCALINGS)}"
        )
    angles = torch.outer(torch.arange(max_len, dtype=torch.float32), inv_freq)
    angles = torch.cat((angles, angles), dim=-1)  # [max_len, head_dim]
    return angles.cos() * scale, angles.sin() * scale


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate ``x [num_tokens, num_heads, head_dim]`` by ``cos, sin [num_tokens, 1, head_dim]``."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
