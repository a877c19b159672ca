"""A tiny base, in two number formats, and a random adapter on all its linear layers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from export.forms.form import Options, Workshop
from export.source import open_source
from tests.training.conftest import tiny_base

__all__ = ["tiny_base"]


@pytest.fixture(scope="session")
def adapter(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PEFT folder whose B matrices are not zero; rsLoRA, so that the scaling is not 2."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=6, target_modules="all-linear", use_rslora=True
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_base), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    folder = tmp_path_factory.mktemp("adapters") / "random"
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def bfloat16_base(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("bases") / "half"
    AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_base).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def workshop(tiny_base: Path, adapter: Path) -> Workshop:
    """Of the tiny base and the adapter; what it made once is shared by all tests."""
    source = open_source(str(adapter), str(tiny_base))
    return Workshop(source, lambda *_: None)


@pytest.fixture(scope="session")
def float32_graph(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``model.onnx`` of the tiny base with the adapter merged; beside it ``model.onnx.data``."""
    from export.forms.onnx import FLOAT32

    folder = tmp_path_factory.mktemp("graphs")
    FLOAT32.write(workshop, Options(), folder)
    return folder / "model.onnx"
