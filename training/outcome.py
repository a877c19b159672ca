"""What a run has published. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from artifacts.manifest import Metric


@dataclass(frozen=True, slots=True)
class Outcome:
    """An adapter version or a whole model; what a gate failed is registered, and not fit."""

    kind: Literal["adapter", "model"]
    id: str  # "name@3"
    path: Path
    content_hash: str  # of a model: its fingerprint
    metrics: dict[str, Metric]
    gate: Literal["passed", "failed", "none"] = "passed"
    failed_gates: tuple[str, ...] = ()

    @property
    def is_fit(self) -> bool:
        """Whether it may answer under more than its explicit id."""
        return self.gate != "failed"
