"""Keys of the optimiser, its schedule and the arithmetic.

Learning rate: 5e-4 × (2000 / hidden_size) ^ 0.78, about ten times full fine-tuning's optimum
(https://thinkingmachines.ai/blog/lora): 2.9e-4 at hidden size 4096, 2.5e-3 at 256.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from training.keys.fields import Fraction, Keys, Positive


class OptimisationKeys(Keys):
    """How the weights move."""

    # None: by the base's width, a tenth of it for full and freeze, a twentieth for dpo
    learning_rate: float | None = Field(default=None, gt=0)
    learning_rate_multiplier: float = Field(default=1.0, gt=0)  # of the rate, chosen or settled
    epochs: float = Field(default=3, gt=0)
    max_steps: Positive | None = None  # wins over epochs
    batch_size: Positive = 8
    gradient_accumulation: Positive = 1
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit", "adafactor", "sgd"] = "adamw"
    lr_scheduler: Literal["linear", "cosine", "constant", "plateau"] = "cosine"
    warmup_ratio: Fraction = 0.05
    warmup_steps: int | None = Field(default=None, ge=0)  # wins over warmup_ratio
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, ge=0)  # 0 switches clipping off
    neftune_alpha: float | None = Field(default=None, gt=0)  # arXiv:2310.05914
    gradient_checkpointing: bool = False
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # auto: see plan
    num_threads: Positive | None = None  # None: torch's own choice
    seed: int = Field(default=0, ge=0, lt=2**32)
