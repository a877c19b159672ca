"""Which model families can be served, and the shapes of their linear layers. Knows no weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from artifacts.errors import InvalidInput

SUPPORTED_TYPES = ("llama", "qwen2", "qwen3", "mistral")

# The checkpoint's names of the matrices outside of the layers.
EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"  # where it is not the embedding again

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

# Rotary scalings whose frequencies are fixed. "dynamic" and "longrope" change them with the length
# of each request, so that two requests of one batch would need different ones.
ROPE_TYPES = ("default", "linear", "llama3", "yarn")

# What other families do at these keys, where one of ours would be silently something else.
FOREIGN_KEYS = {
    "num_experts": "its layers are mixtures of experts",
    "num_local_experts": "its layers are mixtures of experts",
    "n_routed_experts": "its layers are mixtures of experts",
    "attn_logit_softcapping": "its attention logits are capped",
    "final_logit_softcapping": "its logits are capped",
    "attention_chunk_size": "its attention is limited to chunks",
    "query_pre_attn_scalar": "its attention is scaled in its own way",
    "attention_multiplier": "its attention is scaled in its own way",
    "embedding_multiplier": "its embeddings are scaled",
    "residual_multiplier": "its residual stream is scaled",
    "logits_scaling": "its logits are scaled",
    "logit_scale": "its logits are scaled",
    "use_qk_norm": "its queries and keys are normalised in its own way",
    "qk_layernorm": "its queries and keys are normalised in its own way",
}


def check_type(model_type: object, source: object) -> None:
    """InvalidInput for a family that we do not serve, by name."""
    if model_type not in SUPPORTED_TYPES:
        raise InvalidInput(
            f"{source}: model type {model_type!r} is not supported; choose a base of "
            + ", ".join(SUPPORTED_TYPES),
            param="model",
        )


def check_config(config: Any, source: object, *, is_quantized_export: bool = False) -> None:
    """InvalidInput for settings of a supported family that would change its answers unseen."""
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    if window is not None and window < config.max_position_embeddings and _has_window(config):
        raise InvalidInput(
            f"{source}: attention is limited to a sliding window of {window} tokens, which is not "
            f"supported; to serve it within its window set sliding_window to null and "
            f"max_position_embeddings to {window} in its config.json",
            param="model",
        )
    if kinds - {"full_attention", "sliding_attention"}:
        other = ", ".join(sorted(kinds - {"full_attention", "sliding_attention"}))
        raise _unsupported(source, f"some of its layers attend by {other}")
    is_quantized = getattr(config, "quantization_config", None) is not None
    if is_quantized and not is_quantized_export:
        raise InvalidInput(
            f"{source}: its weights are stored quantised; give the 16-bit checkpoint and let "
            "--quantization do it at load time",
            param="model",
        )
    if config.hidden_act != "silu":
        raise _unsupported(source, f"its activation is {config.hidden_act!r}, not 'silu'")
    for key, meaning in FOREIGN_KEYS.items():
        if getattr(config, key, None) not in (None, False, 0, 1):
            raise _unsupported(source, f"{meaning} ({key})")
    _check_rope(config, source)


def _check_rope(config: Any, source: object) -> None:
    parameters = config.rope_parameters
    if any(isinstance(value, Mapping) for value in parameters.values()):
        raise _unsupported(source, "its layers have different rotary embeddings (rope_parameters)")
    kind = parameters.get("rope_type", "default")
    if kind not in ROPE_TYPES:
        raise _unsupported(
            source, f"its rope_type is {kind!r}, only {', '.join(ROPE_TYPES)} are known"
        )
    if parameters.get("partial_rotary_factor", 1.0) != 1.0:
        raise _unsupported(source, "only a part of each head is rotated (partial_rotary_factor)")
    if parameters.get("mrope_section") is not None:
        raise _unsupported(source, "its positions have several dimensions (mrope_section)")


def _unsupported(source: object, reason: str) -> InvalidInput:
    return InvalidInput(f"{source}: {reason}, which is not supported", param="model")


def check_tensors(config: Any, shapes: Mapping[str, tuple[int, ...]], source: object) -> None:
    """InvalidInput unless the checkpoint holds what the family is made of, and nothing more.

    A tensor that nobody reads is a part of the model that would be missing from every answer.
    """
    expected = tensor_shapes(config)
    for name, shape in expected.items():
        if name not in shapes:
            raise InvalidInput(
                f"{source}: its weights lack {name}, which {config.model_type} has; copy the whole "
                "base again",
                param="model",
            )
        if tuple(shapes[name]) != shape:
            raise InvalidInput(
                f"{source}: {name} is {tuple(shapes[name])} where its config.json asks for {shape}",
                param="model",
            )
    for name in sorted(set(shapes) - set(expected)):
        # Frequencies that old checkpoints stored, and a head that is not used when it is tied.
        if not name.endswith("rotary_emb.inv_freq") and name != HEAD:
            raise _unsupported(source, f"its weights hold {name}, unknown to {config.model_type}")


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


def tensor_shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """Every tensor of a checkpoint by name."""
    hidden, vocab = config.hidden_size, config.vocab_size
    shapes: dict[str, tuple[int, ...]] = {
        EMBEDDING: (vocab, hidden),
        "model.norm.weight": (hidden,),
    }
    if not config.tie_word_embeddings:
        shapes[HEAD] = (vocab, hidden)
    for index in range(config.num_hidden_layers):
        layer = f"model.layers.{index}."
        shapes[layer + "input_layernorm.weight"] = (hidden,)
        shapes[layer + "post_attention_layernorm.weight"] = (hidden,)
        if config.model_type == "qwen3":
            shapes[layer + "self_attn.q_norm.weight"] = (head_dim(config),)
            shapes[layer + "self_attn.k_norm.weight"] = (head_dim(config),)
    biased = _biased(config)
    for module, shape in linear_shapes(config).items():
        shapes[f"{module}.weight"] = shape
        if module.rsplit(".", 1)[1] in biased:
            shapes[f"{module}.bias"] = shape[:1]
    return shapes


def _biased(config: Any) -> set[str]:
    """Which linears have a bias: by configuration, except that Qwen2's q, k and v always do."""
    names = {"q_proj", "k_proj", "v_proj"} if config.model_type == "qwen2" else set()
    if config.model_type in ("llama", "qwen3") and config.attention_bias:
        names |= {"q_proj", "k_proj", "v_proj", "o_proj"}
    if config.model_type == "llama" and config.mlp_bias:
        names |= {"gate_proj", "up_proj", "down_proj"}
    return names
