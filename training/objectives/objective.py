"""What the loop asks of an objective, and which class answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from training.config import TrainingConfig
from training.data.examples import Example
from training.data.split import Split
from training.objectives.preference import Preference
from training.objectives.supervised import Supervised

Batch = Any  # a training.batches.Batch, perhaps with more


class Objective(Protocol):
    """Rows are of the kind that ``training.data`` renders for the objective."""

    def prepare(self, model: Any, split: Split, batch_size: int) -> Split:
        """Rows with what must be known before the first step, of the model as it starts."""

    def collate(self, rows: Sequence[Any]) -> Batch:
        """Rows end to end, see training.batches."""

    def num_items(self, batches: Sequence[Batch]) -> Tensor:
        """What the summed loss of these batches is divided by."""

    def summed_loss(self, model: Any, batch: Batch) -> Tensor:
        """The loss of a batch, summed over its items."""

    def validation_loss(self, model: Any, rows: Sequence[Any], batch_size: int) -> float:
        """The mean loss per item, whatever the batches."""

    def supervised_rows(self, rows: Sequence[Any]) -> Sequence[Example]:
        """What a loss per token is taken of."""

    def held_out(self, model: Any, rows: Sequence[Any], batch_size: int) -> dict[str, float]:
        """Figures of the objective's own on rows that were not learned."""


def choose_objective(config: TrainingConfig) -> Objective:
    """The objective that ``config`` asks for."""
    return Preference(config) if config.objective == "dpo" else Supervised()
