"""The same split and settings through plain PEFT and transformers' Trainer: the same quality.

The reference shares our rendering and split, and nothing of our loop: its own padding collator, its
own random batches, the model's own loss, its own evaluation.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from artifacts.base import EMBEDDED_BASE, load_transformers_model
from artifacts.home import Home
from tests.training.conftest import Recorder, rows
from training.config import TrainingConfig, parse_config
from training.data.examples import Example
from training.inputs import Inputs, load_inputs
from training.plan import Plan, make_plan
from training.run import train_adapter
from training.signals import StopRequest

HUANHUAN = Path(__file__).parents[3] / "shared" / "data" / "huanhuan.json"


def reference_perplexity(inputs: Inputs, output: Path) -> float:
    """Held-out perplexity per assistant token after a plain training."""
    from peft import LoraConfig, get_peft_model
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments, set_seed

    config: TrainingConfig = inputs.config
    split = inputs.data.split
    num_batches = math.ceil(len(split.train) / config.batch_size)
    plan: Plan = make_plan(config, inputs.base.config, num_batches, "cpu")
    set_seed(config.seed)
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.rank,
        lora_alpha=int(config.scaled_alpha),
        target_modules="all-linear",
    )
    model = get_peft_model(load_transformers_model(inputs.base), lora)
    arguments = TrainingArguments(
        output_dir=str(output),
        per_device_train_batch_size=config.batch_size,
        num_train_epochs=config.epochs,
        learning_rate=plan.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=plan.warmup_steps,
        eval_strategy="steps",
        eval_steps=plan.eval_steps,
        save_steps=plan.eval_steps or 1,
        save_total_limit=1,
        load_best_model_at_end=True,
        report_to=[],
        disable_tqdm=True,
        seed=config.seed,
        use_cpu=True,
    )
    trainer = Trainer(
        model,
        arguments,
        data_collator=DataCollatorForSeq2Seq(inputs.base.tokenizer, padding=True),
        train_dataset=_plain(split.train),
        eval_dataset=_plain(split.validation),
    )
    trainer.train()
    return _plain_perplexity(model, split.test)


def _plain(examples: Sequence[Example]) -> Any:
    return [{"input_ids": list(e.input_ids), "labels": list(e.labels)} for e in examples]


@torch.no_grad()
def _plain_perplexity(model: Any, examples: Sequence[Example]) -> float:
    """Row by row through the model's own loss."""
    model.eval()
    total = 0.0
    for example in examples:
        ids, labels = (torch.tensor([list(part)]) for part in (example.input_ids, example.labels))
        total += model(input_ids=ids, labels=labels).loss.item() * example.num_targets
    return math.exp(total / sum(example.num_targets for example in examples))


def compare(settings: dict[str, Any], folder: Path) -> dict[str, float]:
    """Both trainings; the figures of ours, of the reference and of the base."""
    config = parse_config(settings)
    recorder = Recorder()
    train_adapter(config, recorder, StopRequest())
    metrics = recorder.of("published")[0]["metrics"]
    began = time.monotonic()
    home = Home.open(settings["home"])
    reference = reference_perplexity(load_inputs(config, home), folder / "reference")
    return {
        "base": metrics["base_perplexity"],
        "ours": metrics["adapter_perplexity"],
        "reference": reference,
        "ours_s": recorder.of("published")[0]["duration_s"],
        "reference_s": time.monotonic() - began,
    }


def test_a_small_run_is_as_good_as_plain_peft(settings: dict[str, Any], tmp_path: Path) -> None:
    Path(settings["data"][0]).write_text(json.dumps(rows(160)), encoding="utf-8")
    more = {"epochs": 6, "eval_steps": 16, "learning_rate": 0.01, "rank": 8}
    figures = compare(settings | more, tmp_path)
    assert figures["ours"] < 0.5 * figures["base"]
    assert figures["ours"] == pytest.approx(figures["reference"], rel=0.03)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not HUANHUAN.is_file(), reason="the persona data set is not at hand")
def test_huanhuan_is_as_good_as_plain_peft(tmp_path: Path) -> None:
    """The defaults on the embedded base. EPOCHS in the environment shortens it."""
    settings = {
        "name": "huanhuan",
        "base": str(EMBEDDED_BASE),
        "home": str(tmp_path / "home"),
        "data": [str(HUANHUAN)],
        "epochs": float(os.environ.get("EPOCHS", "3")),
        "early_stopping_patience": None,
    }
    figures = compare(settings, tmp_path)
    print(json.dumps(figures))
    assert figures["ours"] <= 0.65 * figures["base"]
    assert figures["ours"] == pytest.approx(figures["reference"], rel=0.03)
