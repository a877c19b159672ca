"""Which model families can be served, and the shapes of their linear layers. Knows no weights."""

from __future__ import annotations

from typing import Any

from artifacts.errors import InvalidInput

SUPPORTED_TYPES = ("llama", "qwen2", "qwen3", "mistral")

# What decides a base's function, besides its tensors. Explicit, so that neither a new default of
# transformers nor a key such as _name_or_path changes a fingerprint.
EFFECTIVE_KEYS = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "rms_norm_eps",
    "rope_parameters",
    "tie_word_embeddings",
    "attention_bias",
    "mlp_bias",
)


def check_type(model_type: object, source: object) -> None:
    """InvalidInput for a family that we do not serve, by name."""
    if model_type not in SUPPORTED_TYPES:
        raise InvalidInput(
            f"{source}: model type {model_type!r} is not supported; choose a base of "
            + ", ".join(SUPPORTED_TYPES),
            param="model",
        )


def check_config(config: Any, source: object) -> None:
    """InvalidInput for settings of a supported family that would change its answers unseen."""
    window = getattr(config, "sliding_window", None)
    if window is not None and window < config.max_position_embeddings and _has_window(config):
        raise InvalidInput(
            f"{source}: attention is limited to a sliding window of {window} tokens, which is not "
            f"supported; to serve it within its window set sliding_window to null and "
            f"max_position_embeddings to {window} in its config.json",
            param="model",
        )
    quantization = getattr(config, "quantization_config", None)
    if quantization is not None:
        raise InvalidInput(
            f"{source}: its weights are stored quantised; give the 16-bit checkpoint and let "
            "--quantization do it at load time",
            param="model",
        )
    if config.hidden_act != "silu":
        raise InvalidInput(
            f"{source}: activation {config.hidden_act!r} is not supported, only 'silu'",
            param="model",
        )


def _has_window(config: Any) -> bool:
    """Qwen lists the kind of each layer; Mistral's window holds for every layer."""
    kinds = getattr(config, "layer_types", None)
    return kinds is None or "sliding_attention" in kinds


def head_dim(config: Any) -> int:
    """Width of one attention head; not always hidden_size / num_attention_heads."""
    explicit = getattr(config, "head_dim", None)
    if explicit is not None:
        return int(explicit)
    return int(config.hidden_size) // int(config.num_attention_heads)


def effective_config(config: Any) -> dict[str, Any]:
    """The settings that decide the base's function, the same however the file spells them."""
    values = {key: getattr(config, key, None) for key in EFFECTIVE_KEYS}
    values["head_dim"] = head_dim(config)
    for key in ("attention_bias", "mlp_bias", "tie_word_embeddings"):
        values[key] = bool(values[key])
    return values


def linear_shapes(config: Any) -> dict[str, tuple[int, int]]:
    """Module path → (out, in) of every linear layer inside the decoder layers; not lm_head."""
    hidden, inner = config.hidden_size, config.intermediate_size
    heads = config.num_attention_heads * head_dim(config)
    shared = config.num_key_value_heads * head_dim(config)
    layer = {
        "self_attn.q_proj": (heads, hidden),
        "self_attn.k_proj": (shared, hidden),
        "self_attn.v_proj": (shared, hidden),
        "self_attn.o_proj": (hidden, heads),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    return {
        f"model.layers.{index}.{name}": shape
        for index in range(config.num_hidden_layers)
        for name, shape in layer.items()
    }
