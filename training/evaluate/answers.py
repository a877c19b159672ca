"""What one subject said to a suite."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Answers:
    """Summed losses per row in nats, and texts by variant of the question."""

    losses: dict[str, list[float]] = field(default_factory=dict)  # by task
    texts: dict[str, dict[str, list[str]]] = field(default_factory=dict)  # by task and variant
