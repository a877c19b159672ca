"""Tiny bases of four families with what is odd in each, an adapter on each, and their exports."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from export.forms.form import Form, Options, Workshop
from export.source import Source, open_source
from tests.training.conftest import write_tokenizer

SIZES: dict[str, Any] = {
    "vocab_size": 267,  # more than the tokenizer has
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 256,
    "eos_token_id": 257,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
FAMILIES: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True, rope_parameters=LLAMA3),
    "qwen2": Qwen2Config(**SIZES, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SIZES, head_dim=32),
    "mistral": MistralConfig(**SIZES, sliding_window=None),
}

WriteTokenizer = Callable[[Path], object]
Exported = tuple[Path, dict[str, Any]]


@pytest.fixture(scope="session")
def source_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Source]:
    """Family → base and adapter; ranks and scalings differ from module to module."""
    made: dict[str, Source] = {}

    def make(family: str) -> Source:
        if family not in made:
            made[family] = make_source(FAMILIES[family], tmp_path_factory.mktemp(family))
        return made[family]

    return make


def make_source(
    config: PretrainedConfig, folder: Path, write_its_tokenizer: WriteTokenizer = write_tokenizer
) -> Source:
    from peft import LoraConfig, get_peft_model

    base, adapter = folder / "base", folder / "adapter"
    base.mkdir()
    write_its_tokenizer(base)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if "bias" in name or "norm" in name:
            torch.nn.init.normal_(parameter, mean=1.0, std=0.2)
        elif "q_proj" in name or "k_proj" in name:  # attention that looks at something
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(base)
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=4,
        lora_alpha=6,
        target_modules="all-linear",
        use_rslora=True,
        rank_pattern={"k_proj": 2},
        alpha_pattern={"q_proj": 11},
    )
    tuned = get_peft_model(model, lora)
    for name, parameter in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    tuned.save_pretrained(adapter)
    return open_source(str(adapter), str(base))


def write(form: Form, source: Source, folder: Path, **options: Any) -> Exported:
    """As the command does: the base's small files are there first."""
    for path in source.base.path.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, folder)
    return folder, form.write(Workshop(source, lambda *_: None), Options(**options), folder)
