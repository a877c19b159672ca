"""Whole runs on the tiny base, and what a published version answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from artifacts.adapter import LoraWeights, check_adapter, linear_shapes, read_adapter
from artifacts.base import load_transformers_model, open_base
from artifacts.database import Database
from artifacts.home import Home
from artifacts.registry import AdapterVersion, Registry
from tests.training.conftest import Recorder
from training.config import parse_config
from training.run import train_adapter
from training.signals import StopRequest


def train(settings: dict[str, Any], **more: Any) -> Recorder:
    recorder = Recorder()
    train_adapter(parse_config({**settings, **more}), recorder, StopRequest())
    return recorder


def unreadable(settings: dict[str, Any]) -> list[str]:
    """A data file that whoever reads it complains of."""
    path = Path(settings["data"][0]).with_name("unreadable.json")
    path.write_text("[", encoding="utf-8")
    return [str(path)]


def versions(settings: dict[str, Any]) -> list[AdapterVersion]:
    home = Home.open(settings["home"])
    return Registry(home, Database(home.database_url)).list()


def served(settings: dict[str, Any], folder: Path) -> LoraWeights:
    """The weights as the server reads and checks them."""
    weights = read_adapter(folder)
    check_adapter(weights, linear_shapes(open_base(settings["base"]).config), max_rank=256)
    return weights


def figures(version: AdapterVersion) -> dict[str, float]:
    """Its metrics that are numbers."""
    metrics = version.manifest.metrics
    return {key: value for key, value in metrics.items() if isinstance(value, float | int)}


def losses(recorder: Recorder) -> list[float]:
    return [event["loss"] for event in recorder.of("progress")]


@torch.no_grad()
def answer(model: Any, base: Path | str, question: str, num_tokens: int = 12) -> list[int]:
    """Greedy ids after one question."""
    from artifacts.chat import ChatRenderer

    prompt = ChatRenderer(open_base(base).tokenizer).render_prompt(
        [{"role": "user", "content": question}]
    )
    ids = torch.tensor([prompt])
    for _ in range(num_tokens):
        ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    return [int(token) for token in ids[0, len(prompt) :]]


def adapted_model(settings: dict[str, Any], folder: Path) -> Any:
    """The base under the published adapter, by PEFT alone."""
    from peft import PeftModel

    return PeftModel.from_pretrained(
        load_transformers_model(open_base(settings["base"])), folder
    ).eval()
