"""Stop when the validation loss no longer falls: after so many evaluations, steps or epochs.

transformers' own callback knows evaluations only. What is counted lies in the checkpoint, so a
resumed run stops where the uninterrupted one would.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from training.run_folder import read_state

Unit = Literal["evaluations", "steps", "epochs"]
_ROUNDING = 1e-6  # of an epoch: positions in it are sums of fractions


class EarlyStopping(TrainerCallback, ExportableState):  # type: ignore[misc]
    """Counts from the last loss that was more than ``threshold`` below the best before it.

    Evaluations before ``first_step`` do not count: their weights are no candidates.
    """

    def __init__(self, patience: int, unit: Unit, threshold: float, first_step: int) -> None:
        self._patience = patience
        self._unit = unit
        self._threshold = threshold
        self._first_step = first_step
        self.best_loss: float | None = None
        self.best_step = 0
        self.best_epoch = 0.0
        self.num_evaluations = 0  # since the best
        self.has_stopped = False

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step < self._first_step:
            return
        loss: float = kwargs["metrics"]["eval_loss"]
        if self.best_loss is None or loss < self.best_loss - self._threshold:
            self.best_loss, self.num_evaluations = loss, 0
            self.best_step, self.best_epoch = state.global_step, state.epoch
            return
        self.num_evaluations += 1
        waited: dict[str, float] = {
            "evaluations": self.num_evaluations,
            "steps": state.global_step - self.best_step,
            "epochs": state.epoch - self.best_epoch + _ROUNDING,
        }
        if waited[self._unit] >= self._patience:
            self.has_stopped = control.should_training_stop = True

    def state(self) -> dict[str, Any]:
        """What transformers keeps in a checkpoint and makes this again from."""
        names = ("best_loss", "best_step", "best_epoch", "num_evaluations", "has_stopped")
        return {
            "args": {
                "patience": self._patience,
                "unit": self._unit,
                "threshold": self._threshold,
                "first_step": self._first_step,
            },
            "attributes": {name: getattr(self, name) for name in names},
        }


def had_stopped_early(checkpoint: Path) -> bool:
    """A run killed between its early stop and its publication must not train on."""
    counted = read_state(checkpoint)["stateful_callbacks"].get(EarlyStopping.__name__)
    return counted is not None and bool(counted["attributes"]["has_stopped"])
