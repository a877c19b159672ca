"""What a configuration or a checkpoint may not ask for: refused by name, never ignored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from artifacts.architecture import check_config, check_tensors, check_type, tensor_shapes
from artifacts.base import open_base
from artifacts.errors import InvalidInput
from tests.conftest import TinyBase

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
}
FAMILIES: list[PretrainedConfig] = [
    LlamaConfig(**SIZES),
    LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    Qwen2Config(**SIZES),
    Qwen3Config(**SIZES, head_dim=12),
    Qwen3Config(**SIZES, attention_bias=True),
    MistralConfig(**SIZES, sliding_window=None),
]


def rope(**parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 1e4, **parameters}}


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (MistralConfig(**SIZES, sliding_window=64), "sliding window of 64 .* sliding_window to nu"),
        (
            Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=64, max_window_layers=1),
            "sliding window of 64",
        ),
        (Qwen3Config(**SIZES, layer_types=["full_attention", "chunked_attention"]), "chunked_atte"),
        (LlamaConfig(**SIZES, hidden_act="gelu"), "activation is 'gelu'"),
        (LlamaConfig(**SIZES, **rope(rope_type="dynamic", factor=2.0)), "rope_type is 'dynamic'"),
        (
            LlamaConfig(
                **SIZES,
                **rope(
                    rope_type="longrope",
                    factor=2.0,
                    short_factor=[1.0] * 4,
                    long_factor=[2.0] * 4,
                    original_max_position_embeddings=128,
                ),
            ),
            "rope_type is 'longrope', only default, linear, llama3, yarn",
        ),
        (LlamaConfig(**SIZES, **rope(rope_type="default", partial_rotary_factor=0.5)), "partial"),
        (LlamaConfig(**SIZES, **rope(rope_type="default", mrope_section=[2, 2])), "mrope_section"),
        (LlamaConfig(**SIZES, quantization_config={"quant_method": "gptq"}), "quantised"),
        (LlamaConfig(**SIZES, attn_logit_softcapping=50.0), "capped"),
        (LlamaConfig(**SIZES, num_local_experts=8), "mixtures of experts"),
        (LlamaConfig(**SIZES, embedding_multiplier=12.0), "embeddings are scaled"),
        (LlamaConfig(**SIZES, attention_chunk_size=64), "limited to chunks"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_would_change_answers_unseen_is_refused(config: PretrainedConfig, reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        check_config(config, "base")


@pytest.mark.parametrize(
    "config",
    [
        *FAMILIES,
        MistralConfig(**SIZES, sliding_window=256),
        Qwen2Config(**SIZES, use_sliding_window=False, sliding_window=64),
        LlamaConfig(**SIZES, num_local_experts=0, attn_logit_softcapping=None, logit_scale=1.0),
        LlamaConfig(**SIZES, **rope(rope_type="linear", factor=2.0)),
    ],
    ids=lambda config: config.model_type,
)
def test_what_changes_nothing_is_accepted(config: PretrainedConfig) -> None:
    check_config(config, "base")


@pytest.mark.parametrize("name", ["mixtral", "qwen2_moe", "qwen3_moe", "gemma2", "phi3", None])
def test_other_families_are_refused_by_name(name: str | None) -> None:
    with pytest.raises(InvalidInput, match=f"{name!r} is not supported; choose a base of llama"):
        check_type(name, "base")


@pytest.mark.parametrize("config", FAMILIES, ids=lambda config: config.model_type)
def test_a_familys_tensors_are_those_of_transformers(config: PretrainedConfig) -> None:
    model = AutoModelForCausalLM.from_config(config)
    stored = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    if config.tie_word_embeddings:
        del stored["lm_head.weight"]
    assert tensor_shapes(config) == stored
    check_tensors(config, stored | {"model.layers.0.self_attn.rotary_emb.inv_freq": (4,)}, "base")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model.norm.weight": None}, "lack model.norm.weight, which llama has"),
        ({"model.norm.weight": (17,)}, r"model.norm.weight is \(17,\) where .* asks for \(16,\)"),
        ({"model.layers.0.self_attn.q_norm.weight": (8,)}, "q_norm.weight, unknown to llama"),
        ({"model.layers.1.self_attn.q_proj.bias": (16,)}, "q_proj.bias, unknown to llama"),
        ({"model.layers.2.mlp.up_proj.weight": (24, 16)}, "layers.2.mlp.up_proj.weight, unknown"),
    ],
)
def test_missing_misshaped_and_unread_tensors_are_named(
    change: dict[str, tuple[int, ...] | None], reason: str
) -> None:
    config = FAMILIES[0]
    changed = {**tensor_shapes(config), **change}
    shapes = {name: shape for name, shape in changed.items() if shape is not None}
    with pytest.raises(InvalidInput, match=reason):
        check_tensors(config, shapes, "base")


def test_opening_a_base_looks_at_its_tensors(tiny_base: TinyBase, tmp_path: Path) -> None:
    source = tiny_base("llama")
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (weights,) = tmp_path.glob("*.safetensors")
    tensors = load_file(weights)
    name = "model.layers.0.self_attn.k_proj.bias"
    save_file(tensors | {name: tensors["model.norm.weight"].clone()}, weights)
    with pytest.raises(InvalidInput, match=name):
        open_base(tmp_path)
