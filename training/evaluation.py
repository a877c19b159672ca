"""The loss, in one place: negative log-likelihood per assistant token. Knows no trainer.

Training, validation and the held-out comparison all use ``target_logits``, so a figure from one
means the same in another. Figures are weighted by token, whatever the batch they came in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad
from torch.utils.checkpoint import checkpoint

from training.batches import Batch, collate
from training.data.examples import IGNORED, Example
from training.segments import no_mask, rounded, use_segments

_MAX_LOGITS = 1 << 26  # float32 logits that exist at once: 256 MB


@dataclass(frozen=True, slots=True)
class HeldOutLoss:
    """Mean over ``num_tokens`` assistant tokens, in nats."""

    loss: float
    num_tokens: int

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss) if self.loss < 700 else math.inf  # exp overflows at 709


def forward(model: Any, batch: Batch, **options: Any) -> Tensor:
    """Logits of the batch, [num_tokens, vocab], or of the positions in ``logits_to_keep``."""
    use_segments(model)
    num_tokens = batch["input_ids"].shape[1]
    keep = options.pop("logits_to_keep", torch.arange(num_tokens, device=batch["input_ids"].device))
    weight = next(model.parameters())
    extra = rounded(weight, num_tokens, 64) - num_tokens  # one more row, which nobody looks at
    output = model(
        input_ids=pad(batch["input_ids"], (0, extra)),
        position_ids=torch.cat(
            [batch["position_ids"], torch.arange(extra, device=keep.device)[None]], dim=1
        ),
        attention_mask=no_mask(batch["input_ids"]),
        segments=[*batch["lengths"].tolist(), *([extra] if extra else [])],
        logits_to_keep=pad(keep, (0, rounded(weight, len(keep), 32) - len(keep))),
        use_cache=False,
        **options,
    )
    logits: Tensor = output.logits[0, : len(keep)]
    return logits


def target_logits(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits [num_targets, vocab] where the loss falls, and the target ids [num_targets].

    Other positions never reach the lm_head: on a large vocabulary that is a third of a step and
    most of its memory.
    """
    following = batch["labels"][0, 1:]  # what each position but the last must predict
    positions = (following != IGNORED).nonzero()[:, 0]  # [num_targets]
    return forward(model, batch, logits_to_keep=positions), following[positions]


def summed_loss(model: Any, batch: Batch) -> Tensor:
    """Summed negative log-likelihood of the batch's assistant tokens, in float32."""
    logits, targets = target_logits(model, batch)
    rows = max(1, _MAX_LOGITS // logits.shape[1])
    if len(logits) <= rows or not logits.requires_grad:
        pieces = zip(logits.split(rows), targets.split(rows), strict=True)
        return torch.stack([_nll(*piece) for piece in pieces]).sum()
    # The float32 copies of one piece at a time, made again for the backward pass.
    pieces = zip(logits.split(rows), targets.split(rows), strict=True)
    losses = [checkpoint(_nll, *piece, use_reentrant=False) for piece in pieces]
    return torch.stack(losses).sum()


def _nll(logits: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(logits.float(), targets, reduction="sum")


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The same batch over there."""
    moved: Any = {key: cast(Tensor, tensor).to(device) for key, tensor in batch.items()}
    return cast(Batch, moved)


@torch.no_grad()
def held_out_loss(model: Any, examples: Sequence[Example], batch_size: int) -> HeldOutLoss:
    """Mean loss per assistant token over ``examples``; leaves the model in the mode it was in."""
    device = next(model.parameters()).device
    ordered = sorted(examples, key=lambda example: len(example.input_ids))
    was_training = model.training
    model.eval()
    total = 0.0
    for start in range(0, len(ordered), batch_size):
        batch = to_device(collate(ordered[start : start + batch_size]), device)
        total += summed_loss(model, batch).item()
    model.train(was_training)
    num_tokens = sum(example.num_targets for example in ordered)
    return HeldOutLoss(total / num_tokens, num_tokens)
