"""The base's own weights: all of them (full), or some decoder layers (freeze).

What comes out is a whole model, a base of its own, in the number format of the one it was made
from. Trained weights are float32: in 16 bits, most updates of a small rate would round to nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from artifacts.architecture import tensor_shapes
from artifacts.base import Base, Checkpoint, load_transformers_model
from artifacts.models import write_model
from training.config import TrainingConfig
from training.plan import Plan

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class WholeModel:
    """A ``training.methods.method.Method``."""

    makes_adapter = False
    first_publishable_step = 0

    def __init__(self, config: TrainingConfig, base: Base, plan: Plan) -> None:
        self._config = config
        self._base = base
        self._plan = plan

    def build(self) -> Any:
        """The base itself; frozen weights are in the run's number format."""
        from transformers import set_seed

        set_seed(self._config.seed)
        model = load_transformers_model(self._base, self._plan.dtype)
        model.requires_grad_(self._config.method == "full")
        for layer in self._layers(model):
            layer.requires_grad_(True)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        if self._plan.dtype != "float32":  # for evaluation too, where the trainer adds none
            kind = "cuda" if torch.cuda.is_available() else "cpu"
            autocast = torch.autocast(kind, _DTYPES[self._plan.dtype])
            model.forward = autocast(model.forward)
        return model

    def _layers(self, model: Any) -> list[Any]:
        """Of freeze: the last ``trainable_layers``, the first where it is negative."""
        layers = list(model.model.layers)
        count = self._config.trainable_layers
        if self._config.method == "full":
            return []
        return layers[-count:] if count > 0 else layers[:-count]

    def make_optimizer(self, model: Any, kind: type[Optimizer], options: dict[str, Any]) -> None:
        return None

    def penalty(self, model: Any) -> None:
        return None

    def after_step(self, model: Any, step: int) -> None:
        pass

    def extra_state(self, model: Any) -> dict[str, Tensor]:
        return {}

    def load_extra_state(self, model: Any, tensors: dict[str, Tensor]) -> None:
        pass

    def save(self, model: Any, folder: Path) -> None:
        """A folder that opens like the base, each tensor in the number format that it had there."""
        checkpoint, live = Checkpoint(self._base), model.state_dict()
        names = tensor_shapes(self._base.config)
        tensors = {name: live[name].to("cpu", checkpoint[name].dtype) for name in names}
        write_model(folder, self._base, tensors)

    def restore_base(self, model: Any) -> None:
        pass
