"""Paired bootstrap: how far a difference between two subjects is luck of the questions.

Efron & Tibshirani, An Introduction to the Bootstrap (1993), percentile intervals; paired, because
both answered the same questions (Koehn, EMNLP 2004).
"""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np

from artifacts.results import Difference
from training.evaluate.metrics import Measure

NUM_RESAMPLES = 1000
_AT_ONCE = 100  # resamples whose weights are in memory together
_QUANTILES = (0.025, 0.975)


def paired_differences(
    adapter: Measure, other: Measure, to: Literal["base", "against"], seed: str
) -> tuple[Difference, ...]:
    """adapter − other for every figure, with a 95 % interval; equal for equal arguments."""
    ours, theirs = adapter.of_all, other.of_all
    drawn = _resampled(adapter, other, seed)  # [num_resamples, num_figures]
    low, high = np.quantile(drawn, _QUANTILES, axis=0)
    return tuple(
        Difference(
            to=to,
            metric=metric,
            difference=ours[metric] - theirs[metric],
            low=float(low[place]),
            high=float(high[place]),
        )
        for place, metric in enumerate(ours)
    )


def _resampled(adapter: Measure, other: Measure, seed: str) -> np.ndarray:
    num_rows = len(adapter.statistics)
    digest = hashlib.sha256(seed.encode()).digest()
    draw = np.random.default_rng(int.from_bytes(digest[:8]))
    found = []
    for _ in range(NUM_RESAMPLES // _AT_ONCE):
        # How often each row is drawn; the same rows for both: that is what pairs them.
        weights = draw.multinomial(num_rows, np.full(num_rows, 1 / num_rows), size=_AT_ONCE)
        sums = [weights.astype(float) @ one.statistics for one in (adapter, other)]
        for ours, theirs in zip(*sums, strict=True):
            mine, its = adapter.figures(ours), other.figures(theirs)
            found.append([mine[metric] - its[metric] for metric in mine])
    return np.array(found)
