"""Base models with random weights at real shapes: for measurements and tests, not for answers.

Weights depend on the seed and the tensor's name only. One shard is in memory at a time.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from artifacts.base import EMBEDDED_BASE, INDEX_FILE, open_tokenizer
from artifacts.errors import Conflict, InvalidInput
from artifacts.safe_write import publish_folder, write_json

MAX_SHARD_BYTES = 1 << 30
PIECE = 1 << 24  # weights drawn at once
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.model",
    "chat_template.jinja",
)
DTYPES = ("float32", "bfloat16", "float16")

# Tiny shapes leave vocab_size to the tokenizer and draw larger weights, so that greedy answers of
# different prompts differ and no two logits tie.
_TINY: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.15,
}
_QWEN25: dict[str, Any] = {
    "model_type": "qwen2",
    "vocab_size": 151936,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
}
SHAPES: Mapping[str, dict[str, Any]] = {
    "deepseek-llm-7b": {
        "model_type": "llama",
        "vocab_size": 102400,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 30,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e4,
    },
    "qwen2.5-0.5b": _QWEN25
    | {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
    },
    "qwen2.5-1.5b": _QWEN25
    | {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
    },
    "llama-3.2-1b": {
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 5e5,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "tie_word_embeddings": True,
    },
    "tiny-llama": _TINY | {"model_type": "llama", "num_hidden_layers": 3},
    "tiny-qwen2": _TINY | {"model_type": "qwen2", "tie_word_embeddings": True},
    "tiny-mistral": _TINY | {"model_type": "mistral", "sliding_window": None},
    "tiny-qwen3": _TINY | {"model_type": "qwen3", "head_dim": 32},  # heads wider than hidden_size
}


def init_base(
    shape: str,
    output: Path,
    tokenizer: Path | None = None,
    seed: int = 0,
    dtype: str = "bfloat16",
) -> Path:
    """Write a base of ``shape`` with random weights to ``output`` and return the folder.

    ``tokenizer`` is a folder with a tokenizer, the embedded base's if None. Raises InvalidInput
    (shape, dtype, tokenizer larger than the vocabulary), NotFound (no tokenizer) and Conflict
    (``output`` exists and is not empty).
    """
    if shape not in SHAPES:
        raise InvalidInput(f"shape {shape!r} is unknown; choose one of {', '.join(SHAPES)}")
    if dtype not in DTYPES:
        raise InvalidInput(f"dtype {dtype!r} is unknown; choose one of {', '.join(DTYPES)}")
    output = Path(output).expanduser().absolute()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise Conflict(f"{output} exists and is not empty; choose another folder")
    output.parent.mkdir(parents=True, exist_ok=True)
    # Not inside ``output``: a broken run must not look like a base.
    scratch = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        source = EMBEDDED_BASE if tokenizer is None else Path(tokenizer)
        config = _write_config(shape, scratch, source, dtype)
        _write_weights(config, scratch, seed, dtype)
        scratch.chmod(0o755)
        publish_folder(scratch, output)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return output


def _write_config(shape: str, folder: Path, source: Path, dtype: str) -> Any:
    from transformers import AutoConfig, GenerationConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copy(source / name, folder / name)
    tokenizer = open_tokenizer(folder)
    values = dict(SHAPES[shape])
    values.setdefault("vocab_size", -(-len(tokenizer) // 64) * 64)
    if len(tokenizer) > values["vocab_size"]:
        raise InvalidInput(
            f"{source}: its tokenizer has {len(tokenizer)} tokens, shape {shape} only "
            f"{values['vocab_size']}; give a smaller tokenizer"
        )
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    architecture = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[values["model_type"]]
    config = AutoConfig.for_model(**values, **special, dtype=dtype, architectures=[architecture])
    config.save_pretrained(folder)
    GenerationConfig(**special).save_pretrained(folder)
    return config


def _write_weights(config: Any, folder: Path, seed: int, dtype: str) -> None:
    from safetensors.torch import save_file

    weight_map: dict[str, str] = {}
    total = 0
    shards = list(_shards(_shapes(config), 4 if dtype == "float32" else 2))
    for number, shapes in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {key: _random(config, key, shape, seed, dtype) for key, shape in shapes.items()}
        save_file(tensors, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shapes, name)
        total += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(folder / INDEX_FILE, index)


def _shapes(config: Any) -> dict[str, tuple[int, ...]]:
    """Parameter name → shape, as transformers would store them."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}


def _shards(
    shapes: Mapping[str, tuple[int, ...]], item_bytes: int
) -> Iterator[dict[str, tuple[int, ...]]]:
    shard: dict[str, tuple[int, ...]] = {}
    size = 0
    for name, shape in shapes.items():
        tensor_bytes = item_bytes
        for length in shape:
            tensor_bytes *= length
        if shard and size + tensor_bytes > MAX_SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        shard[name] = shape
        size += tensor_bytes
    yield shard


def _random(config: Any, name: str, shape: tuple[int, ...], seed: int, dtype: str) -> Any:
    """Normal with the config's own spread; norm weights around 1, so that a forgotten one shows."""
    import torch

    digest = hashlib.sha256(json.dumps([seed, name]).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    mean = 1.0 if len(shape) == 1 and name.endswith("weight") else 0.0
    result = torch.empty(shape, dtype=getattr(torch, dtype))
    for piece in result.view(-1).split(PIECE):  # the float32 draw of a 7B's embedding is 1.7 GB
        drawn = torch.randn(piece.shape, generator=generator)
        piece.copy_(drawn.mul_(config.initializer_range).add_(mean))
    return result
