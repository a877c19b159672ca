"""One contender in a process of its own: trains a few steps, prints its figures as JSON.

Tokens are those of real rows, without padding. The first steps warm up and are left out.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts.home import Home
from training.config import TrainingConfig, parse_config
from training.events import Event, claim_stdout
from training.inputs import Inputs, load_inputs
from training.run_folder import RunFolder
from training.signals import StopRequest

NUM_WARM_UP = 3


@dataclass(slots=True)
class Figures:
    """Of the steps after the warm-up; the peak is above the process before it loaded the base."""

    tokens_per_s: float
    rows_per_s: float
    peak_bytes: int


class Watch:
    """Times steps: (tokens, rows, seconds) of each."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, int, float]] = []
        self._began = 0.0

    def begin(self) -> None:
        self._began = time.perf_counter()

    def end(self, tokens: int, rows: int) -> None:
        self.steps.append((tokens, rows, time.perf_counter() - self._began))

    def figures(self, peak_bytes: int) -> Figures:
        steps = self.steps[NUM_WARM_UP:]
        return Figures(
            statistics.median(tokens / seconds for tokens, _, seconds in steps),
            statistics.median(rows / seconds for _, rows, seconds in steps),
            peak_bytes,
        )


class _Silent:
    def emit(self, event: Event) -> None:
        pass

    def close(self) -> None:
        pass


def run_ours(inputs: Inputs) -> Figures:
    """The product's own loop, without its evaluations."""
    from training.pipeline import load_trainer, open_session
    from training.watch.memory import MemoryMark

    folder = RunFolder(inputs.home.tmp / f"bench-{time.time_ns()}")
    folder.path.mkdir(parents=True)
    session = open_session(inputs, folder, _Silent(), StopRequest())
    mark = MemoryMark()
    trainer = load_trainer(inputs, session)
    watch = Watch()

    def step(model: Any, batch: Any, *rest: Any) -> Any:
        watch.begin()
        loss = inner(model, batch, *rest)
        watch.end(batch["input_ids"].numel(), len(batch["lengths"]))
        return loss

    inner = trainer.training_step
    trainer.training_step = step
    trainer.train()
    return watch.figures(mark.peak())


def run_trl(inputs: Inputs, scratch: Path) -> Figures:
    """TRL's SFTTrainer on the same rows, adapter, dtype and batch size, everything else its own."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    from artifacts.base import load_transformers_model
    from training.watch.memory import MemoryMark

    config = inputs.config
    rows = [
        {"input_ids": list(row.input_ids), "labels": list(row.labels)}
        for row in inputs.data.split.train
    ]
    dtype = "float32" if config.dtype == "auto" else config.dtype
    mark = MemoryMark()
    trainer = SFTTrainer(
        load_transformers_model(inputs.base, dtype),
        SFTConfig(
            output_dir=str(scratch),
            per_device_train_batch_size=1 if config.packing else config.batch_size,
            max_length=(config.batch_size if config.packing else 1) * (config.max_length or 2048),
            packing=config.packing,
            max_steps=config.max_steps,
            learning_rate=config.learning_rate or 2e-4,
            bf16=dtype == "bfloat16",
            gradient_checkpointing=config.gradient_checkpointing,
            use_cpu=not torch.cuda.is_available(),
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            seed=config.seed,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=inputs.base.tokenizer,
        peft_config=LoraConfig(
            task_type="CAUSAL_LM",
            r=config.rank,
            lora_alpha=int(config.scaled_alpha),
            target_modules="all-linear",
        ),
    )
    watch = Watch()
    inner = trainer.training_step

    def step(model: Any, batch: Any, *rest: Any) -> Any:
        if "attention_mask" in batch:
            tokens, num_rows = int(batch["attention_mask"].sum()), len(batch["input_ids"])
        else:
            tokens = batch["input_ids"].numel()
            num_rows = int((batch["position_ids"] == 0).sum())
        watch.begin()
        loss = inner(model, batch, *rest)
        watch.end(tokens, num_rows)
        return loss

    trainer.training_step = step
    trainer.train()
    return watch.figures(mark.peak())


def main(kind: str, settings: dict[str, Any]) -> None:
    """``kind`` is ours or trl; ``settings`` are a training configuration's."""
    out = claim_stdout()
    config: TrainingConfig = parse_config(settings)
    home = Home.open(config.home)
    inputs = load_inputs(config, home)
    figures = run_ours(inputs) if kind == "ours" else run_trl(inputs, home.tmp / "trl")
    with out:
        json.dump(
            {"tokens_per_s": figures.tokens_per_s, "rows_per_s": figures.rows_per_s,
             "peak_bytes": figures.peak_bytes}, out)  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
