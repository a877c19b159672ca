"""The training loop: lean, resumable to the step, and aware of its time limit."""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM

from artifacts.safe_write import write_bytes
from training.pretrain.recipe import Recipe
from training.pretrain.stream import Batch, Position, Stream

BETAS = (0.9, 0.95)
CLIP_NORM = 1.0
FINAL_LR = 0.02  # fraction of the peak that the cosine ends at


@dataclass
class Progress:
    """How far the run is; saved with every checkpoint."""

    step: int = 0
    position: Position = Position(1, 0)  # pool 0 made the tokenizer
    num_tokens: int = 0
    elapsed_s: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)


@dataclass
class Run:
    """A model in training: everything a checkpoint has to hold."""

    recipe: Recipe
    model: LlamaForCausalLM
    optimizer: torch.optim.AdamW
    progress: Progress

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        progress = self.progress
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": {**vars(progress), "position": vars(progress.position)},
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        self.recipe.work.mkdir(parents=True, exist_ok=True)
        write_bytes(self.recipe.work / "checkpoint.pt", buffer.getvalue())
        curve = json.dumps(progress.curve, indent=0) + "\n"
        write_bytes(self.recipe.work / "curve.json", curve.encode())

    def restore(self) -> bool:
        """Load the checkpoint of the recipe's work folder; False if there is none."""
        path = self.recipe.work / "checkpoint.pt"
        if not path.exists():
            return False
        state: dict[str, Any] = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        saved = state["progress"]
        self.progress = Progress(**{**saved, "position": Position(**saved["position"])})
        return True


def start_run(recipe: Recipe, model: LlamaForCausalLM) -> Run:
    """A run at step 0, weight decay on matrices only."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=BETAS, fused=True)
    return Run(recipe, model, optimizer, Progress())


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then a cosine down to a fiftieth of the peak."""
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    done = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return recipe.learning_rate * (FINAL_LR + (1 - FINAL_LR) * cosine)


def batch_loss(model: LlamaForCausalLM, batch: Batch) -> torch.Tensor:
    """Mean cross entropy over the batch's targets; logits exist at those positions only."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model.model(input_ids=batch.tokens, use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[batch.rows, batch.columns])  # [num_targets, vocab]
    targets = batch.tokens[batch.rows, batch.columns + 1]
    return cross_entropy(logits.float(), targets)


def train(run: Run, stream: Stream, report: Callable[[Progress, float], None]) -> bool:
    """Train to the recipe's last step. Returns False if the time limit came first.

    `report(progress, loss)` is called after every step; checkpoints are written on the way and
    at the end.
    """
    recipe, progress = run.recipe, run.progress
    run.model.train()
    began = time.monotonic() - progress.elapsed_s
    last_save = time.monotonic()
    for batch in stream.batches(progress.position):
        if progress.step >= recipe.steps or progress.elapsed_s > recipe.max_minutes * 60:
            break
        loss = _step(run, batch)
        progress.step += 1
        progress.position = batch.following
        progress.num_tokens += batch.num_tokens
        progress.elapsed_s = time.monotonic() - began
        progress.curve.append({"step": progress.step, "loss": round(loss, 4)})
        report(progress, loss)
        if time.monotonic() - last_save > recipe.checkpoint_minutes * 60:
            run.save()
            last_save = time.monotonic()
    run.save()
    return progress.step >= recipe.steps


def _step(run: Run, batch: Batch) -> float:
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(run.recipe, run.progress.step)
    loss = batch_loss(run.model, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(run.model.parameters(), CLIP_NORM)
    run.optimizer.step()
    run.optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())
