"""LoRA (arXiv:2106.09685) and the variants that end as a plain one: rsLoRA, LoRA+, PiSSA, OLoRA.

PiSSA and OLoRA start from parts of the base's own weights and leave the rest in the base. Relative
to the base as it was, what they learned is ``s·(B·A − B0·A0)``: a plain LoRA of twice the rank,
``B' = [B, −B0]`` and ``A' = [A; A0]``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from artifacts.base import Base, Checkpoint, load_transformers_model
from training.config import TrainingConfig
from training.methods.plain_lora import tidy_adapter, write_adapter
from training.methods.quantized import load_quantized
from training.methods.start import StartAdapter
from training.methods.targets import choose_layers, choose_targets
from training.plan import Plan

Pairs = dict[str, tuple[Tensor, Tensor]]  # module path → A [rank, in], B [out, rank]

_INITIALISATIONS = {"default": True, "gaussian": "gaussian", "pissa": "pissa", "olora": "olora"}


class Lora:
    """A ``training.methods.method.Method``."""

    makes_adapter = True
    first_publishable_step = 0

    def __init__(
        self, config: TrainingConfig, base: Base, plan: Plan, start: StartAdapter | None
    ) -> None:
        self._config = config
        self._base = base
        self._plan = plan
        self._start = start
        self._initial: Pairs = {}  # what PiSSA and OLoRA took out of the base

    def build(self) -> Any:
        """A PEFT model whose LoRA matrices are float32.

        At the start it answers as the base, or as the adapter that it continues.
        """
        from peft import get_peft_model
        from transformers import set_seed

        set_seed(self._config.seed)  # the initial A matrices
        base_model = self._load_base()
        if self._config.gradient_checkpointing:
            base_model.enable_input_require_grads()  # else no gradient reaches the first layer
        if self._start is not None:
            return self._continue(base_model, self._start)
        model = get_peft_model(base_model, self._settings())
        if self._config.initialisation in ("pissa", "olora"):
            self._initial = {
                module: (a.detach().clone(), b.detach().clone())
                for module, (a, b) in lora_pairs(model).items()
            }
        return model

    def _load_base(self) -> Any:
        if self._config.quantization == "none":
            return load_transformers_model(self._base, self._plan.dtype)
        return load_quantized(self._base, self._config, self._plan.dtype)

    def make_optimizer(self, model: Any, kind: type[Optimizer], options: dict[str, Any]) -> Any:
        """LoRA+: B learns ``loraplus_ratio`` times as fast as A."""
        if self._config.loraplus_ratio is None:
            return None
        from peft.optimizers import create_loraplus_optimizer

        return create_loraplus_optimizer(
            model,
            kind,
            loraplus_lr_ratio=self._config.loraplus_ratio,
            loraplus_weight_decay=self._config.weight_decay,
            **options,
        )

    def penalty(self, model: Any) -> None:
        return None

    def after_step(self, model: Any, step: int) -> None:
        pass

    def extra_state(self, model: Any) -> dict[str, Tensor]:
        return {}

    def load_extra_state(self, model: Any, tensors: dict[str, Tensor]) -> None:
        pass

    def save(self, model: Any, folder: Path) -> None:
        """A PEFT folder of plain LoRA, whatever the initialisation was."""
        if not self._initial:
            model.save_pretrained(str(folder), save_embedding_layers=False)
            tidy_adapter(folder, self._base)
            return
        doubled = {
            module: (torch.cat([a, a0.to(a)]), torch.cat([b, -b0.to(b)], dim=1))
            for (module, (a, b)), (a0, b0) in zip(
                lora_pairs(model).items(), self._initial.values(), strict=True
            )
        }
        scaling = self._config.scaled_alpha / self._config.rank
        if self._config.use_rslora:
            scaling = self._config.scaled_alpha / self._config.rank**0.5
        rank = 2 * self._config.rank
        write_adapter(folder, self._base, doubled, dict.fromkeys(doubled, scaling * rank))

    @torch.no_grad()
    def restore_base(self, model: Any) -> None:
        """Puts back what PiSSA and OLoRA took out, from the files: adding it again would round."""
        if not self._initial:
            return
        checkpoint = Checkpoint(self._base)
        for module in self._initial:
            linear = model.get_base_model().get_submodule(module)
            linear.base_layer.weight.copy_(checkpoint[f"{module}.weight"])

    def _settings(self) -> Any:
        from peft import LoraConfig

        config = self._config
        return LoraConfig(
            task_type="CAUSAL_LM",
            r=config.rank,
            lora_alpha=config.scaled_alpha,
            lora_dropout=config.dropout,
            target_modules=choose_targets(config, self._base),
            layers_to_transform=choose_layers(config, self._base),
            use_rslora=config.use_rslora,
            init_lora_weights=_INITIALISATIONS[config.initialisation],
        )

    def _continue(self, base_model: Any, start: StartAdapter) -> Any:
        from peft import LoraConfig, PeftModel

        settings = LoraConfig.from_pretrained(str(start.folder))
        settings.lora_dropout = self._config.dropout
        return PeftModel.from_pretrained(
            base_model, str(start.folder), config=settings, is_trainable=True
        )


def lora_pairs(model: Any) -> Pairs:
    """The live A and B of every adapted module of a PEFT model with one adapter, sorted."""
    found = {
        name: (module.lora_A["default"].weight, module.lora_B["default"].weight)
        for name, module in model.get_base_model().named_modules()
        if hasattr(module, "lora_A")
    }
    return dict(sorted(found.items()))
