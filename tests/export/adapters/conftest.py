"""Exports in the form ``onnx-adapters``, and adapters that differ in rank, scaling and modules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from artifacts.exported.graph import AdapterInputs
from artifacts.exported.onnx_model import OnnxModel, load_onnx
from export.forms.form import Options, Workshop
from export.forms.onnx_adapters import ADAPTERS
from export.source import open_source


@dataclass(frozen=True)
class Opened:
    """A base, its export and the one session on it."""

    base: Path
    folder: Path
    file: Path  # of the adapter that it was exported for
    model: OnnxModel

    def pack(self, adapter: Path) -> AdapterInputs:
        return self.model.pack(open_source(str(adapter), str(self.base)).weights)

    def reference(self, adapter: Path | None) -> Any:
        """transformers' model, in float32, under PEFT where there is an adapter."""
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(self.base, dtype=torch.float32)
        return model.eval() if adapter is None else PeftModel.from_pretrained(model, adapter).eval()


def open_exported(workshop: Workshop, folder: Path) -> Opened:
    ADAPTERS.write(workshop, Options(), folder)
    file = folder / "adapters" / f"{workshop.source.adapter_id}.onnx_adapter"
    return Opened(workshop.source.base.path, folder, file, load_onnx(folder, num_threads=1))


MakeAdapter = Callable[..., Path]


@pytest.fixture(scope="session")
def make_adapter(tmp_path_factory: pytest.TempPathFactory) -> MakeAdapter:
    """A PEFT folder whose B matrices are not zero."""

    def make(base: Path, name: str, **config: Any) -> Path:
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        torch.manual_seed(len(name))
        made = LoraConfig(task_type="CAUSAL_LM", **config)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), made)
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                torch.nn.init.normal_(parameter, std=0.05)
        folder = tmp_path_factory.mktemp("adapters") / name
        model.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def patterned(tiny_base: Path, make_adapter: MakeAdapter) -> Path:
    """Two kinds of modules, another rank and another alpha for some of them."""
    return make_adapter(
        tiny_base,
        "patterned",
        r=3,
        lora_alpha=5,
        target_modules=["q_proj", "down_proj"],
        rank_pattern={"layers.0.self_attn.q_proj": 9},
        alpha_pattern={"down_proj": 20},
    )


@pytest.fixture(scope="session")
def opened(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """Of the tiny Llama, exported for the adapter on all linear layers (rank 4, rsLoRA)."""
    return open_exported(workshop, tmp_path_factory.mktemp("onnx-adapters"))
