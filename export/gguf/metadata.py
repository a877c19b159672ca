"""Which models GGUF can say, and what it says of their sizes and rotary embedding."""

from __future__ import annotations

from typing import Any

import torch
from gguf import GGUFWriter, RopeScalingType
from torch import Tensor

from artifacts.architecture import head_dim
from artifacts.errors import InvalidInput

# model type → the graph that llama.cpp builds; Mistral without a window is Llama's.
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
FREQUENCIES = "rope_freqs.weight"  # divisors of the rotary frequencies; llama's graph alone has it

# What YaRN may say for llama.cpp to compute the same from factor and original length.
_YARN = {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": True}


def architecture(config: Any) -> str:
    return ARCHITECTURES[config.model_type]


def check_model(config: Any) -> None:
    """Raises InvalidInput for a setting that llama.cpp would compute in another way."""
    rope = config.rope_parameters
    kind = rope["rope_type"]
    if kind == "llama3" and architecture(config) != "llama":
        raise _unsupported(f"rope_type llama3 on {config.model_type}")
    if kind == "yarn":
        for key, wanted in _YARN.items():
            if rope.get(key) not in (None, wanted):
                raise _unsupported(f"YaRN with {key}={rope[key]}")
        for key in ("attention_factor", "mscale", "mscale_all_dim"):
            if rope.get(key) is not None:
                raise _unsupported(f"YaRN with {key}={rope[key]}")
    if config.model_type == "qwen3" and config.attention_bias:
        raise _unsupported("qwen3 with attention_bias")


def add_sizes(writer: GGUFWriter, config: Any) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim(config))
    writer.add_value_length(head_dim(config))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(head_dim(config))
    _add_rope(writer, config.rope_parameters, config.max_position_embeddings)


def rope_divisors(config: Any) -> Tensor | None:
    """Llama 3's scaling as divisors [head_dim / 2] of the plain frequencies; None for others."""
    if config.rope_parameters["rope_type"] != "llama3":
        return None
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    width = head_dim(config)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    exponents = torch.arange(0, width, 2, dtype=torch.float32) / width
    plain = 1.0 / config.rope_parameters["rope_theta"] ** exponents
    divisors: Tensor = plain / scaled.float()
    return divisors


def _add_rope(writer: GGUFWriter, rope: dict[str, Any], context_length: int) -> None:
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif rope["rope_type"] == "yarn":
        original = rope.get("original_max_position_embeddings") or context_length
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(original)


def _unsupported(what: str) -> InvalidInput:
    return InvalidInput(
        f"GGUF cannot say {what}, and llama.cpp would answer otherwise; choose another format",
        param="format",
    )
