"""Bases of several families with an adapter each, and what is exported of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from artifacts.base import EMBEDDED_BASE
from artifacts.exported.formats import FORMATS
from export import run
from export.proof.process import ProofAsk
from export.proof.report import Proof
from export.proof.run import prove_all
from export.run import Asked
from tests.training.conftest import write_tokenizer


def tiny_shape(family: str, folder: Path) -> Path:
    """Two layers; biases for Qwen2, norms of queries and keys for Qwen3; an untied head."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        family,
        vocab_size=write_tokenizer(folder),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        bos_token_id=256,
        eos_token_id=257,
        pad_token_id=257,
        tie_word_embeddings=family == "qwen3",
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():  # zeros would hide a bias that is lost
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder)
    return folder


def random_adapter(base: Path, folder: Path) -> Path:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=6, target_modules="all-linear", use_rslora=True
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    model.save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Family:
    base: Path
    adapter: Path
    output: Path
    make: Callable[[], object]  # waits until everything is there

    def folder(self, name: str) -> Path:
        self.make()
        return self.output / name


def run_command(base: Path, adapter: Path, output: Path) -> None:
    """Every form, by ``loraloop export``."""
    command = [sys.executable, "-m", "loraloop", "export", str(adapter), "--model", str(base)]
    command += ["--output", str(output), "--allow-unverified"]
    for name in FORMATS:
        command += ["--format", name]
    env = {**os.environ, "LORALOOP_HOME": str(output.parent / "home"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr


def run_here(base: Path, adapter: Path, output: Path, names: tuple[str, ...]) -> None:
    """The same without the cost of processes of their own."""

    def prove(folders: Sequence[Path], ask: ProofAsk, progress: Any) -> list[Proof]:
        found: dict[Path, Proof] = {}
        prove_all(folders, ask, progress, found.__setitem__)
        return [found[folder] for folder in folders]

    asked = Asked(str(adapter), output, names, str(base), allow_unverified=True)
    with patch.object(run, "prove_in_fresh_process", prove):
        run.export_forms(asked, lambda *_: None)


def tiny_family(name: str, root: Path, names: tuple[str, ...] = ()) -> Family:
    (root / name / "base").mkdir(parents=True)
    base = tiny_shape(name, root / name / "base")
    adapter, out = random_adapter(base, root / name / "adapter"), root / name / "out"
    make = cache(lambda: run_here(base, adapter, out, names))
    return Family(base, adapter, out, make)


def embedded_family(root: Path) -> Family:
    """Every form of the embedded base, by the command."""
    out = root / "embedded/out"
    adapter = random_adapter(EMBEDDED_BASE, root / "embedded/adapter")
    make = cache(lambda: run_command(EMBEDDED_BASE, adapter, out))
    return Family(EMBEDDED_BASE, adapter, out, make)
