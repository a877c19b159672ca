"""AdaLoRA: ranks are really shared out, the export is exact, a resume continues the books."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from artifacts.base import load_transformers_model, open_base
from artifacts.home import Home
from tests.training.methods.runs import (
    adapted_model,
    answer,
    figures,
    losses,
    served,
    train,
    versions,
)
from tests.training.test_run import interrupt
from training.config import parse_config
from training.errors import InvalidConfig
from training.evaluation import held_out_loss
from training.inputs import load_inputs
from training.methods.adalora import AdaLora
from training.objectives.supervised import Supervised
from training.plan import make_plan

ADALORA: dict[str, Any] = {
    "method": "adalora",
    "rank": 2,
    "adalora_initial_rank": 4,
    "alpha": 7,
    "learning_rate": 0.03,
}


def test_it_learns_with_different_ranks_and_serves_as_plain_lora(settings: dict[str, Any]) -> None:
    told = losses(train(settings, **ADALORA))
    assert told[-1] < 0.95 * told[0]
    (version,) = versions(settings)
    weights, metrics = served(settings, version.path), figures(version)
    ranks = {module: pair.rank for module, pair in weights.pairs.items()}
    num_modules = 14  # seven in each of two layers
    assert len(set(ranks.values())) > 1
    assert sum(ranks.values()) <= 2 * num_modules < 4 * num_modules
    assert {pair.scaling for pair in weights.pairs.values()} == {1.0}
    assert metrics["merge_difference"] < 1e-4

    model = adapted_model(settings, version.path)
    test = load_inputs(parse_config(settings), Home.open(settings["home"])).data.split.test
    assert held_out_loss(model, test, 3).loss == pytest.approx(metrics["adapter_loss"], rel=1e-4)
    base = load_transformers_model(open_base(settings["base"]))
    assert answer(model, settings["base"], "What is 3?") != answer(
        base, settings["base"], "What is 3?"
    )


def test_the_allocator_is_called_once_per_step_from_one(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import AdaLoraModel

    called: list[int] = []
    real = AdaLoraModel.update_and_allocate

    def record(model: Any, step: int) -> None:
        called.append(step)
        real(model, step)

    monkeypatch.setattr(AdaLoraModel, "update_and_allocate", record)
    train(settings, **ADALORA, gradient_accumulation=2, batch_size=3, max_steps=10)
    assert called == list(range(1, 11))


def test_weights_with_ranks_that_are_not_final_are_not_published(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the validation loss only rises: the best is the first with final ranks."""
    rising = iter(range(1, 100))
    monkeypatch.setattr(Supervised, "validation_loss", lambda *_: float(next(rising)))
    train(settings, **ADALORA, eval_steps=1, max_steps=10, adalora_final_ratio=0.2)
    (version,) = versions(settings)
    assert version.manifest.metrics["validation_loss"] == 8.0
    assert len({pair.rank for pair in served(settings, version.path).pairs.values()}) > 1


def test_a_resumed_run_is_the_uninterrupted_run(settings: dict[str, Any], tmp_path: Path) -> None:
    """Stopped in its warm-up, while ranks are shared out, and when they are final."""
    more = {**ADALORA, "dropout": 0.1, "adalora_warmup_ratio": 0.25, "logging_steps": 1}
    train(settings, **more, output_dir=str(tmp_path / "whole"))
    interrupt(settings, 3, **more)
    interrupt(settings, 9, **more, resume=True)
    interrupt(settings, 13, **more, resume=True)
    train(settings, **more, resume=True)
    one, other = versions(settings)
    assert one.content_hash == other.content_hash
    assert one.manifest.metrics == other.manifest.metrics


def test_a_run_too_short_to_share_out_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfig, match="2 steps leave none to share ranks out"):
        train(settings, **ADALORA, max_steps=2, adalora_final_ratio=0.5, adalora_warmup_ratio=0.4)


def test_its_matrices_are_float32_on_a_bfloat16_base(settings: dict[str, Any]) -> None:
    train(settings, **ADALORA, dtype="bfloat16", max_steps=6)
    (version,) = versions(settings)
    pairs = served(settings, version.path).pairs.values()
    assert {pair.a.dtype for pair in pairs} == {torch.float32}


def test_the_penalty_is_pefts_own(settings: dict[str, Any]) -> None:
    """PEFT adds it to the loss that a model computes itself."""
    base = open_base(settings["base"])
    config = parse_config({**settings, **ADALORA})
    method = AdaLora(config, base, make_plan(config, base.config, 4, "cpu"))
    model = method.build()
    ids = torch.arange(10, 30)[None]
    theirs = model(input_ids=ids, labels=ids).loss - model.model(input_ids=ids, labels=ids).loss
    assert method.penalty(model).item() == pytest.approx(theirs.item(), rel=1e-4)
