"""What a suite of tasks found, as plain records: for reports, gates, manifests and model cards.

Subjects are ``base``, ``adapter`` and, where another version was asked too, ``against``.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Kind = Literal["perplexity", "generation", "classification"]
Subject = Literal["base", "adapter", "against"]
Figures = dict[str, float]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Difference(_Record):
    """adapter − other, with its 95 % interval of paired resamples."""

    to: Literal["base", "against"]
    metric: str
    difference: float
    low: float
    high: float


class Noise(_Record):
    """One perturbation: ``score`` is ``noisy`` / ``clean``, None where that says nothing."""

    clean: float
    noisy: float
    score: float | None
    num_changed: int
    num_questions: int


class TaskResult(_Record):
    name: str
    kind: Kind
    main: str  # the metric that stands for the task
    num_rows: int
    num_left_out: int  # longer than the base's context
    figures: dict[str, Figures]  # by subject
    differences: tuple[Difference, ...]
    robustness: dict[str, dict[str, Noise]] = {}  # by subject and perturbation


class Results(_Record):
    """A whole suite. ``forgetting`` is the adapter's rise of perplexity on the general set."""

    suite: str
    suite_hash: str  # SHA-256 of the suite's settings and of its files' bytes
    seed: int
    subjects: dict[str, dict[str, Any]] = {}  # who they are; a manifest knows that itself
    tasks: tuple[TaskResult, ...]
    general: TaskResult | None = None

    @property
    def forgetting(self) -> float | None:
        if self.general is None or "adapter" not in self.general.figures:
            return None
        base, adapter = (self.general.figures[who]["loss"] for who in ("base", "adapter"))
        return math.expm1(min(adapter - base, 700.0))
