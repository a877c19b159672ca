"""A folder that a form writes into as export does, and a Qwen2 whose biases are not zero."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from artifacts.models import copy_without_weights
from export.forms.form import Form, Options, Workshop
from export.source import Source
from tests.training.conftest import write_tokenizer


def write_form(form: Form, source: Source, folder: Path, **options: Any) -> dict[str, Any]:
    """What `export.run` does around a form; returns its settings."""
    folder.mkdir()
    copy_without_weights(source.base, folder)
    workshop = Workshop(source, lambda done, total, what: None)
    return form.write(workshop, Options(**options), folder)


@pytest.fixture(scope="session")
def qwen2_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bfloat16, biases on q, k and v, a head of its own."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    folder = tmp_path_factory.mktemp("bases") / "qwen2"
    config = Qwen2Config(
        vocab_size=write_tokenizer(folder),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=256,
        eos_token_id=257,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.5)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def qwen2_adapter(qwen2_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"]
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(qwen2_base), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    folder = tmp_path_factory.mktemp("adapters") / "qwen2"
    model.save_pretrained(folder)
    return folder
