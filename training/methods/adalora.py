"""AdaLoRA (arXiv:2303.10512): a budget of ranks, moved during the run to where they matter.

Each update is ``B · diag(E) · A``. After every optimizer step PEFT's allocator weighs the entries
of all E together and zeroes the least important ones; neither transformers nor TRL calls it. What
is published is a plain LoRA: E and the scaling folded into A, entries that are zero left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from artifacts.base import Base, load_transformers_model
from training.config import TrainingConfig
from training.errors import InvalidConfig
from training.methods.plain_lora import write_adapter
from training.methods.targets import choose_layers, choose_targets
from training.plan import Plan

_COUNTED = ("ipt", "exp_avg_ipt", "exp_avg_unc")  # the allocator's books, a dict of tensors each
_PATTERN = "rank_pattern"
ORTHOGONALITY = 0.5  # weight of the penalty that keeps A and B orthogonal, PEFT's default


class AdaLora:
    """A ``training.methods.method.Method``.

    Raises InvalidConfig for a run of too few steps.
    """

    makes_adapter = True

    def __init__(self, config: TrainingConfig, base: Base, plan: Plan) -> None:
        self._config = config
        self._base = base
        self._plan = plan
        self._num_warmup = round(config.adalora_warmup_ratio * plan.total_steps)
        self._num_final = round(config.adalora_final_ratio * plan.total_steps)
        # Before this step the ranks are not final, so its weights are no candidates.
        self.first_publishable_step = plan.total_steps - self._num_final
        if self._num_warmup >= self.first_publishable_step:
            raise InvalidConfig(
                f"method=adalora: {plan.total_steps} steps leave none to share ranks out between "
                f"{self._num_warmup} of warm-up and {self._num_final} with final ranks; train "
                "longer or lower adalora_warmup_ratio or adalora_final_ratio",
                param="method",
            )

    def build(self) -> Any:
        """A PEFT model that answers as the base until its first step."""
        from peft import AdaLoraConfig, get_peft_model
        from transformers import set_seed

        config = self._config
        set_seed(config.seed)  # the initial A and B
        initial = config.adalora_initial_rank
        settings = AdaLoraConfig(
            task_type="CAUSAL_LM",
            target_r=config.rank,
            init_r=max(config.rank + 1, config.rank * 3 // 2) if initial is None else initial,
            tinit=self._num_warmup,
            tfinal=self._num_final,
            deltaT=config.adalora_interval,
            total_step=self._plan.total_steps,
            orth_reg_weight=ORTHOGONALITY,
            lora_alpha=config.scaled_alpha,
            lora_dropout=config.dropout,
            target_modules=choose_targets(config, self._base),
            layers_to_transform=choose_layers(config, self._base),
        )
        model = load_transformers_model(self._base, self._plan.dtype)
        if config.gradient_checkpointing:
            model.enable_input_require_grads()
        return get_peft_model(model, settings)

    def make_optimizer(self, model: Any, kind: type[Optimizer], options: dict[str, Any]) -> None:
        return None

    def penalty(self, model: Any) -> Tensor:
        """How far A and B are from orthogonal; PEFT adds it to a loss that we do not ask it for."""
        distances = []
        for layer in _layers(model).values():
            for matrix in (layer.lora_A["default"], layer.lora_B["default"].T):  # [rank, …]
                identity = torch.eye(len(matrix), device=matrix.device)
                distances.append(torch.linalg.matrix_norm(matrix @ matrix.T - identity))
        return ORTHOGONALITY * torch.stack(distances).mean()

    def after_step(self, model: Any, step: int) -> None:
        model.base_model.update_and_allocate(step)

    def extra_state(self, model: Any) -> dict[str, Tensor]:
        """The allocator's books, and the ranks once they are final."""
        allocator = model.base_model.rankallocator
        state = {
            f"{book}/{name}": tensor
            for book in _COUNTED
            for name, tensor in getattr(allocator, book).items()
        }
        for name, kept in (_settings(model).rank_pattern or {}).items():
            state[f"{_PATTERN}/{name}"] = torch.tensor(kept, dtype=torch.bool)
        return state

    def load_extra_state(self, model: Any, tensors: dict[str, Tensor]) -> None:
        allocator = model.base_model.rankallocator
        allocator.reset_ipt()
        device = next(model.parameters()).device
        pattern: dict[str, list[bool]] = {}
        for key, tensor in tensors.items():
            book, _, name = key.partition("/")
            if book == _PATTERN:
                pattern[name] = tensor.tolist()
            else:
                getattr(allocator, book)[name] = tensor.to(device)
        _settings(model).rank_pattern = pattern or None

    def save(self, model: Any, folder: Path) -> None:
        """A PEFT folder of plain LoRA whose ranks differ by module; a module without any is out.

        Before the first step moved anything, all ranks are kept, as in an untrained LoRA.
        """
        layers = _layers(model)
        is_untrained = not any(layer.lora_E["default"].any() for layer in layers.values())
        pairs = {}
        for path, layer in layers.items():
            values = layer.lora_E["default"][:, 0]  # [initial rank]
            kept = ((values != 0) | is_untrained).nonzero()[:, 0]
            scaling = layer.scaling["default"] / (layer.ranknum["default"] + 1e-5)  # as PEFT's
            if len(kept):
                a = layer.lora_A["default"][kept] * values[kept, None] * scaling
                pairs[path] = (a, layer.lora_B["default"][:, kept])
        # Scaled already: alpha = rank makes the folder's own scaling 1.
        write_adapter(folder, self._base, pairs, {m: float(len(a)) for m, (a, _) in pairs.items()})

    def restore_base(self, model: Any) -> None:
        pass


def _layers(model: Any) -> dict[str, Any]:
    """The adapted layers by module path, sorted."""
    named = model.get_base_model().named_modules()
    return dict(sorted((name, module) for name, module in named if hasattr(module, "lora_E")))


def _settings(model: Any) -> Any:
    return model.peft_config["default"]
