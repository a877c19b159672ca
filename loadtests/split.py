"""Did traffic follow the weights? The binomial bound of an A/B split."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

SIGMAS = 4.0  # a fair split leaves this band once in 16,000 runs per arm


@dataclass(frozen=True)
class ArmShare:
    """How many of ``num_total`` requests one arm got, and how many it should have got."""

    model: str
    share: float  # 0…1, the weight
    num_requests: int
    num_total: int

    @property
    def expected(self) -> float:
        return self.share * self.num_total

    @property
    def tolerance(self) -> float:
        """Requests off the expectation that chance explains: ``SIGMAS`` standard deviations."""
        return SIGMAS * math.sqrt(self.num_total * self.share * (1 - self.share))

    @property
    def is_within(self) -> bool:
        return abs(self.num_requests - self.expected) <= self.tolerance

    def __str__(self) -> str:
        return (
            f"{self.model}: {self.num_requests} of {self.num_total} requests, "
            f"expected {self.expected:.0f} ± {self.tolerance:.0f}"
        )


def shares(weights: Mapping[str, float], counts: Mapping[str, int]) -> list[ArmShare]:
    """One share per arm. Answers by versions outside ``weights`` count in the total only."""
    num_total, weight_sum = sum(counts.values()), sum(weights.values())
    return [
        ArmShare(model, weight / weight_sum, counts.get(model, 0), num_total)
        for model, weight in weights.items()
    ]
