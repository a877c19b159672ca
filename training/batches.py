"""Examples to batches: data set, seeded order, collation. Knows no model.

A batch is one sequence in which its rows lie end to end (``training.segments`` keeps them apart):
nothing is padded, and rows of any lengths can meet. The order of an epoch depends on (seed, epoch)
alone: a resumed run sees the batches it would have.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TypedDict

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from training.data.examples import IGNORED, Example, lengths_of
from training.data.mixing import Mix


class Batch(TypedDict):
    """Rows end to end; ``num_tokens`` is the sum of their lengths."""

    input_ids: Tensor  # [1, num_tokens]
    position_ids: Tensor  # [1, num_tokens], from 0 in each row
    labels: Tensor  # [1, num_tokens], IGNORED where no loss falls and at each row's first token
    lengths: Tensor  # [num_rows]


class ExampleDataset(Dataset[Example]):
    """A list in torch's clothes."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        return self._examples[index]


class ShuffledBatches(Sampler[list[int]]):
    """Every index once per epoch, or as often as the mix says, ``batch_size`` at a time; accelerate
    sets the epoch.

    With ``max_tokens``, a batch holds instead as many rows as fit, give or take one: packing. The
    number of batches is the same in all epochs then too; a schedule and a resume count on it.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        batch_size: int,
        seed: int,
        max_tokens: int | None = None,
        mix: Mix | None = None,
    ) -> None:
        self._lengths = lengths_of(examples)
        self._batch_size = batch_size
        self._seed = seed
        self._max_tokens = max_tokens
        self._mix = mix
        self._num_batches = num_batches(self._lengths, batch_size, max_tokens, mix)
        self._epoch = 0

    def __len__(self) -> int:
        return self._num_batches

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self._seed << 20 | self._epoch)
        rows: Sequence[int] = range(len(self._lengths))
        if self._mix is not None:
            rows = self._mix.epoch_rows(self._epoch)
        order = [rows[place] for place in torch.randperm(len(rows), generator=generator).tolist()]
        if self._max_tokens is None:
            for start in range(0, len(order), self._batch_size):
                yield order[start : start + self._batch_size]
        else:
            yield from self._packed(order)

    def _packed(self, order: list[int]) -> Iterator[list[int]]:
        """Cuts the epoch's tokens into equal parts; a row belongs where its first token falls.

        Unless too few rows were left for the batches to come: each of these gets one.
        """
        batch: list[int] = []
        share = sum(self._lengths[index] for index in order) / len(self)
        number, begin = 1, 0
        for place, index in enumerate(order):
            must_end = len(order) - place <= len(self) - number
            if batch and number < len(self) and (must_end or begin >= number * share):
                yield batch
                batch, number = [], number + 1
            batch.append(index)
            begin += self._lengths[index]
        yield batch


def num_batches(
    lengths: Sequence[int], batch_size: int, max_tokens: int | None, mix: Mix | None = None
) -> int:
    """Batches per epoch, by rows or, with ``max_tokens``, by tokens."""
    if max_tokens is None:
        return math.ceil((len(lengths) if mix is None else len(mix)) / batch_size)
    num_tokens = sum(lengths) if mix is None else round(float(mix.rates @ lengths))
    return _num_packed(num_tokens, max(lengths), max_tokens)


def _num_packed(num_tokens: int, longest: int, max_tokens: int) -> int:
    """How many batches of about ``max_tokens`` an epoch makes; none is empty."""
    return max(1, min(math.ceil(num_tokens / max_tokens), num_tokens // longest))


def collate(examples: Sequence[Example]) -> Batch:
    """Rows end to end. A row's first token is no target: nothing before it predicts it."""
    lengths = [len(example.input_ids) for example in examples]
    ids = torch.cat([torch.tensor(e.input_ids, dtype=torch.long) for e in examples])
    labels = torch.cat([torch.tensor(e.labels, dtype=torch.long) for e in examples])
    ends = torch.tensor(lengths).cumsum(0)
    labels[ends - torch.tensor(lengths)] = IGNORED
    return {
        "input_ids": ids[None],
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
        "labels": labels[None],
        "lengths": torch.tensor(lengths),
    }
