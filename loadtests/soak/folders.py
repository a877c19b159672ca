"""PEFT LoRA folders made from nothing but the base's ``config.json``: random, non-zero, different.

The shapes are those of the Llama family. Knows no server.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

JSON = dict[str, Any]
RANKS = (2, 3, 4, 8, 12, 16)
TARGETS = (
    ("q_proj", "v_proj"),
    ("q_proj", "k_proj", "v_proj", "o_proj"),
    ("gate_proj", "up_proj", "down_proj"),
    ("down_proj",),
    ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
)
SCALE = 0.1  # standard deviation of A and B: every answer differs from the base's
CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"


def linear_shapes(config: JSON) -> dict[str, tuple[int, int]]:
    """Last part of a module's path → (out, in), for one layer of the base with this config."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    num_heads = config["num_attention_heads"]
    width = config.get("head_dim") or hidden // num_heads
    heads, shared = num_heads * width, (config.get("num_key_value_heads") or num_heads) * width
    return {
        "q_proj": (heads, hidden),
        "k_proj": (shared, hidden),
        "v_proj": (shared, hidden),
        "o_proj": (hidden, heads),
        "gate_proj": (inner, hidden),
        "up_proj": (inner, hidden),
        "down_proj": (hidden, inner),
    }


def write_folder(folder: Path, config: JSON, seed: int) -> Path:
    """A new adapter; rank, targets, number format and weights all follow from ``seed``."""
    source = np.random.default_rng(seed)
    rank, targets = RANKS[seed % len(RANKS)], TARGETS[seed % len(TARGETS)]
    kind = np.float16 if seed % 3 == 0 else np.float32
    shapes = linear_shapes(config)
    tensors = {
        f"base_model.model.model.layers.{layer}.{_part(target)}.{target}.lora_{side}.weight": (
            SCALE * source.standard_normal(shape)
        ).astype(kind)
        for layer in range(config["num_hidden_layers"])
        for target in targets
        for side, shape in _sides(shapes[target], rank)
    }
    folder.mkdir(parents=True)
    _save(folder, tensors, {"r": rank, "lora_alpha": 2 * rank, "target_modules": list(targets)})
    return folder


def _save(folder: Path, tensors: Mapping[str, NDArray[Any]], settings: JSON) -> None:
    save_file(dict(tensors), folder / WEIGHTS_FILE)
    content = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none", **settings}
    (folder / CONFIG_FILE).write_text(json.dumps(content), encoding="utf-8")


def _sides(shape: tuple[int, int], rank: int) -> tuple[tuple[str, tuple[int, int]], ...]:
    out, inner = shape
    return ("A", (rank, inner)), ("B", (out, rank))


def _part(target: str) -> str:
    return "mlp" if target in ("gate_proj", "up_proj", "down_proj") else "self_attn"
