"""Keys that say which weights are trained, from where they start and what they learn.

All linear layers, alpha = 2 × rank and no dropout are the setting under which LoRA matches full
fine-tuning on small sets; attention-only targets lose quality at equal parameters
(https://thinkingmachines.ai/blog/lora).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from training.keys.fields import Fraction, Keys, Positive


class AdapterKeys(Keys):
    """What comes out: an adapter version (lora, adalora) or a whole model (full, freeze)."""

    method: Literal["lora", "adalora", "full", "freeze"] = "lora"
    objective: Literal["sft", "dpo"] = "sft"
    start_from: str | None = None  # name@version or a PEFT folder whose weights are trained on

    # low-rank adapters
    rank: int = Field(default=16, gt=0, le=256)
    alpha: float | None = Field(default=None, gt=0)  # None: 2 × rank
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    layers_to_transform: tuple[int, ...] | None = None  # indices of decoder layers; None: all
    use_rslora: bool = False  # scale by alpha / sqrt(rank) (arXiv:2312.03732)
    # pissa: from the largest singular vectors (arXiv:2404.02948); published with 2 × rank
    initialisation: Literal["default", "gaussian", "pissa", "olora"] = "default"
    loraplus_ratio: float | None = Field(default=None, gt=0)  # B's rate over A's, 2402.12354
    # adalora (arXiv:2303.10512): ranks begin here and end at ``rank`` on average
    adalora_initial_rank: Positive | None = None  # None: 1.5 × rank
    adalora_warmup_ratio: Fraction = 0.1  # steps before the budget begins to shrink
    adalora_final_ratio: Fraction = 0.3  # last steps with the final ranks
    adalora_interval: Positive = 1  # steps between two allocations

    # freeze: how many of the last decoder layers are trained; negative: of the first
    trainable_layers: int = 2

    # the frozen base under an adapter
    quantization: Literal["none", "nf4", "int8"] = "none"  # QLoRA (arXiv:2305.14314)
    double_quantization: bool = True

    # dpo (arXiv:2305.18290)
    dpo_beta: float = Field(default=0.1, gt=0)
    dpo_loss: Literal["sigmoid", "hinge", "ipo"] = "sigmoid"
    dpo_label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    dpo_sft_weight: float = Field(default=0.0, ge=0)  # adds the supervised loss of the chosen reply
