"""The recipe file: read once, unknown keys refused, then frozen."""

from __future__ import annotations

from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field


class Shape(BaseModel):
    """The Llama shape; every linear width is a multiple of 128 so that later exports fit."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    vocab_size: int = Field(multiple_of=128)
    hidden_size: int = Field(multiple_of=128)
    intermediate_size: int = Field(multiple_of=128)
    num_layers: int = Field(gt=0)
    num_heads: int = Field(gt=0)
    num_kv_heads: int = Field(gt=0)
    head_dim: int = 64
    context: int = Field(ge=64)


class Recipe(BaseModel):
    """Everything that decides the weights, plus how long they may take."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    seed: int
    shape: Shape
    tokenizer_conversations: int = Field(gt=0)
    output: Path
    work: Path
    pool_size: int = Field(gt=0)
    batch_tokens: int = Field(gt=0)
    cycles: tuple[int, ...] = Field(min_length=1, description="the last step of each cycle")
    learning_rate: float = Field(gt=0)
    warmup_steps: int = Field(ge=0)
    weight_decay: float = Field(ge=0)
    prompt_weight: float = Field(ge=0, le=1)
    checkpoint_minutes: float = Field(gt=0)
    max_minutes: float = Field(gt=0)
    checked_pools: int = Field(gt=0)

    @property
    def steps(self) -> int:
        """The length of the whole run."""
        return self.cycles[-1]


def load_recipe(path: Path) -> Recipe:
    """Read and validate a recipe. Raises pydantic.ValidationError naming the bad key."""
    return Recipe.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
