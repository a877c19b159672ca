"""Small real things for every test: bases of each family, PEFT adapters, an empty home."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import pytest

from artifacts.home import Home
from artifacts.init_base import init_base


class TinyBase(Protocol):
    def __call__(self, family: str) -> Path: ...


class PeftAdapter(Protocol):
    def __call__(
        self,
        base: Path,
        rank: int = 4,
        targets: str | Sequence[str] = "all-linear",
        seed: int = 0,
        **settings: object,
    ) -> Path: ...


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """An empty home of its own."""
    return Home.open(tmp_path / "home")


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> TinyBase:
    """``tiny_base("llama" | "mistral" | "qwen2" | "qwen3")``: a folder, random float32 weights."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            folder = tmp_path_factory.mktemp("bases") / f"tiny-{family}"
            made[family] = init_base(f"tiny-{family}", folder, dtype="float32")
        return made[family]

    return make


@pytest.fixture(scope="session")
def peft_adapter(tmp_path_factory: pytest.TempPathFactory) -> PeftAdapter:
    """A factory of PEFT LoRA folders whose A and B are random and non-zero.

    ``settings`` go to LoraConfig: lora_alpha, use_rslora, rank_pattern, alpha_pattern, ….
    """

    def make(
        base: Path,
        rank: int = 4,
        targets: str | Sequence[str] = "all-linear",
        seed: int = 0,
        **settings: object,
    ) -> Path:
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoConfig, AutoModelForCausalLM

        values: dict[str, object] = {"lora_alpha": 2 * rank, "task_type": "CAUSAL_LM"} | settings
        chosen = targets if isinstance(targets, str) else list(targets)
        config = LoraConfig(r=rank, target_modules=chosen, **values)
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base))
        adapted = get_peft_model(model, config)
        generator = torch.Generator().manual_seed(seed)
        for name, weight in sorted(adapted.named_parameters()):
            if "lora_" in name:
                weight.data = 0.1 * torch.randn(weight.shape, generator=generator)
        folder = tmp_path_factory.mktemp("adapter")
        adapted.save_pretrained(folder)
        return folder

    return make
