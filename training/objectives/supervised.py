"""Learn the assistant's tokens (``objective: sft``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from training.batches import Batch, collate
from training.data.examples import IGNORED, Example
from training.data.split import Split
from training.evaluation import held_out_loss, summed_loss


class Supervised:
    """A ``training.objectives.objective.Objective`` whose items are assistant tokens."""

    def prepare(self, model: Any, split: Split, batch_size: int) -> Split:
        return split

    def collate(self, rows: Sequence[Example]) -> Batch:
        return collate(rows)

    def num_items(self, batches: Sequence[Batch]) -> Tensor:
        return torch.stack([(b["labels"] != IGNORED).sum() for b in batches]).sum()

    def summed_loss(self, model: Any, batch: Batch) -> Tensor:
        return summed_loss(model, batch)

    def validation_loss(self, model: Any, rows: Sequence[Example], batch_size: int) -> float:
        return held_out_loss(model, rows, batch_size).loss

    def supervised_rows(self, rows: Sequence[Example]) -> Sequence[Example]:
        return rows

    def held_out(self, model: Any, rows: Sequence[Example], batch_size: int) -> dict[str, float]:
        return {}  # the loss per token says it all
