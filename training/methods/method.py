"""What the loop and the pipeline ask of a training method, and which class answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from torch import Tensor
from torch.optim import Optimizer

from artifacts.base import Base
from training.config import TrainingConfig
from training.methods.start import StartAdapter
from training.plan import Plan


class Method(Protocol):
    """One run's way of training. Built once per process, on the base as it lies on disk."""

    makes_adapter: bool  # else a whole model
    first_publishable_step: int  # weights from before this step are no candidates for the best

    def build(self) -> Any:
        """The model with exactly the parameters to train requiring gradients."""

    def make_optimizer(self, model: Any, kind: type[Optimizer], options: dict[str, Any]) -> Any:
        """The optimizer, None for the trainer's usual one; ``options`` are its arguments."""

    def penalty(self, model: Any) -> Tensor | None:
        """What is added to the loss of a step, if anything."""

    def after_step(self, model: Any, step: int) -> None:
        """Called after optimizer step ``step`` (from 1), while its gradients are still there."""

    def extra_state(self, model: Any) -> dict[str, Tensor]:
        """What a checkpoint must hold besides the trained parameters and the optimizer."""

    def load_extra_state(self, model: Any, tensors: dict[str, Tensor]) -> None:
        """Takes back what ``extra_state`` gave."""

    def save(self, model: Any, folder: Path) -> None:
        """Writes what can be published: a plain LoRA that serves, or a whole model."""

    def restore_base(self, model: Any) -> None:
        """Makes the weights under an adapter the base's own; the adapter is wrong afterwards."""


def choose_method(
    config: TrainingConfig, base: Base, plan: Plan, start: StartAdapter | None
) -> Method:
    """The method that ``config`` asks for."""
    from training.methods.adalora import AdaLora
    from training.methods.lora import Lora
    from training.methods.whole import WholeModel

    if config.method in ("full", "freeze"):
        return WholeModel(config, base, plan)
    if config.method == "adalora":
        return AdaLora(config, base, plan)
    return Lora(config, base, plan, start)
