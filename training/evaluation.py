"""The loss, in one place: negative log-likelihood per assistant token. Knows no trainer.

Training, validation and the held-out comparison all use ``target_logits``, so a figure from one
means the same in another. Figures are weighted by token, whatever the batch they came in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from training.batches import collate
from training.data.examples import IGNORED, Example


@dataclass(frozen=True, slots=True)
class HeldOutLoss:
    """Mean over ``num_tokens`` assistant tokens, in nats."""

    loss: float
    num_tokens: int

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss) if self.loss < 700 else math.inf  # exp overflows at 709


def target_logits(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Logits [num_targets, vocab] where the loss falls, and the target ids [num_targets].

    Columns of the batch in which no row has a target never reach the lm_head: 10-15 % of a step
    on a small base, and most of the memory on a large vocabulary.
    """
    shifted = batch["labels"][:, 1:]  # [batch, longest - 1]: what each position must predict
    columns = (shifted != IGNORED).any(dim=0).nonzero()[:, 0]  # [num_columns]
    logits = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        logits_to_keep=columns,
        use_cache=False,
    ).logits  # [batch, num_columns, vocab]
    targets = shifted[:, columns]
    wanted = targets != IGNORED
    return logits[wanted], targets[wanted]


def summed_loss(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Summed negative log-likelihood of the batch's assistant tokens, in float32."""
    logits, targets = target_logits(model, batch)
    return cross_entropy(logits.float(), targets, reduction="sum")


@torch.no_grad()
def held_out_loss(model: Any, examples: Sequence[Example], batch_size: int) -> HeldOutLoss:
    """Mean loss per assistant token over ``examples``; leaves the model in the mode it was in."""
    device = next(model.parameters()).device
    ordered = sorted(examples, key=lambda example: len(example.input_ids))
    was_training = model.training
    model.eval()
    total = 0.0
    for start in range(0, len(ordered), batch_size):
        batch = collate(ordered[start : start + batch_size])
        total += summed_loss(model, {key: t.to(device) for key, t in batch.items()}).item()
    model.train(was_training)
    num_tokens = sum(example.num_targets for example in ordered)
    return HeldOutLoss(total / num_tokens, num_tokens)
