"""Which rows an epoch shows, and how often: weights of sources, inverse frequency of kinds.

A function of (seed, epoch) alone, so a resumed run sees the rows it would have. Every epoch has the
same number of rows. No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from training.config import TrainingConfig
from training.data.examples import Example

Sampling = Literal["natural", "inverse_frequency"]


@dataclass(frozen=True, slots=True)
class Parentage:
    """Source and kind of every example, in their order."""

    sources: NDArray[np.int64]
    kinds: NDArray[np.int64]


def parentage_of(examples: Sequence[Example]) -> Parentage:
    """Of examples in memory; those on disk (training.data.spill) keep theirs."""
    kept = getattr(examples, "parentage", None)
    if isinstance(kept, Parentage):
        return kept
    count = len(examples)
    return Parentage(
        np.fromiter((example.source for example in examples), np.int64, count),
        np.fromiter((example.kind for example in examples), np.int64, count),
    )


class Mix:
    """The rows of each epoch. ``rates[i]`` is how often example ``i`` is shown per epoch, on
    average; an epoch shows it that often, rounded down or up.

    Natural sampling: the rate is the weight of the example's source. Inverse frequency: all kinds
    are shown equally often, so that each EXAMPLE's rate falls with the size of its kind; weights of
    sources hold inside a kind.
    """

    def __init__(
        self, parentage: Parentage, weights: Sequence[float], sampling: Sampling, seed: int
    ) -> None:
        """``weights`` has one entry per source. Raises ValueError without any example."""
        sources, kinds = parentage.sources, parentage.kinds
        if not len(sources):
            raise ValueError("there is no example to sample from")
        sizes = np.bincount(sources, minlength=len(weights))
        # Whole rows per source: a neighbour's fraction must not make 2 a little less than twice.
        shown = np.maximum(np.rint(sizes * np.asarray(weights, dtype=np.float64)), sizes > 0)
        weight = (shown / np.maximum(sizes, 1))[sources]
        self._num_rows: int = int(shown.sum())
        if sampling == "inverse_frequency":
            _, kind_of = np.unique(kinds, return_inverse=True)
            weight = weight / np.bincount(kind_of, weights=weight)[kind_of]
            weight = weight * (self._num_rows / weight.sum())
        self.rates: NDArray[np.float64] = weight
        draw = np.random.default_rng(seed)
        # Rows of one kind and source lie together, so that their share is kept to one row.
        self._order = np.lexsort((draw.permutation(len(sources)), sources, kinds))
        self._offset = draw.random()

    def __len__(self) -> int:
        """Rows per epoch."""
        return self._num_rows

    def epoch_rows(self, epoch: int) -> Sequence[int]:
        """Indices of the examples, in no order that means anything: shuffle them.

        Systematic sampling: on a line where each example is as long as its rate, the marks at every
        whole number are the epoch's rows. From epoch to epoch the marks move by van der Corput's
        sequence, so that an example of rate r is shown within 2 / r epochs.
        """
        offset = (self._offset + _van_der_corput(epoch)) % 1.0
        ends = np.cumsum(self.rates[self._order])
        ends[-1] = self._num_rows  # rounding must neither lose the last mark nor add one
        marks = np.ceil(ends - offset).astype(np.int64)
        counts = np.diff(marks, prepend=np.int64(np.ceil(-offset)))
        rows: list[int] = np.repeat(self._order, counts).tolist()
        return rows


def make_mix(
    examples: Sequence[Example], weights: Sequence[float], sampling: Sampling, seed: int
) -> Mix | None:
    """The mix of a run's training part; None if every row is to be shown once."""
    if sampling == "natural" and all(weight == 1 for weight in weights):
        return None
    return Mix(parentage_of(examples), weights, sampling, seed)


def training_mix(config: TrainingConfig, examples: Sequence[Example]) -> Mix | None:
    """``make_mix`` as the configuration asks for it."""
    return make_mix(examples, [s.weight for s in config.data], config.sampling, config.seed)


def _van_der_corput(number: int) -> float:
    """The binary digits of ``number`` mirrored at the point: 0, 1/2, 1/4, 3/4, 1/8, …"""
    result, digit = 0.0, 0.5
    while number:
        result += digit * (number & 1)
        number >>= 1
        digit /= 2
    return result
