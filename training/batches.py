"""Examples to padded batches: data set, seeded length-grouped order, collation. Knows no model.

Rows of like length meet in one batch, so that little of it is padding (2 cores feel it at once).
The order of an epoch depends on (seed, epoch) alone: a resumed run sees the batches it would have.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from training.data.examples import IGNORED, Example

# Rows are sorted by length within this many batches: enough to cut padding, few enough that
# batches still differ from epoch to epoch.
_BATCHES_PER_POOL = 8


class ExampleDataset(Dataset[Example]):
    """A list in torch's clothes."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self._examples = examples

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Example:
        return self._examples[index]


class LengthGroupedSampler(Sampler[int]):
    """Yields every index once per epoch, neighbours of like length; accelerate sets the epoch."""

    def __init__(self, examples: Sequence[Example], batch_size: int, seed: int) -> None:
        self._lengths = [len(example.input_ids) for example in examples]
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = 0

    def __len__(self) -> int:
        return len(self._lengths)

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        order = torch.randperm(len(self), generator=generator).tolist()
        pool_size = _BATCHES_PER_POOL * self._batch_size
        batches: list[list[int]] = []
        for start in range(0, len(order), pool_size):
            pool = sorted(order[start : start + pool_size], key=lambda i: self._lengths[i])
            batches += [
                pool[cut : cut + self._batch_size] for cut in range(0, len(pool), self._batch_size)
            ]
        # A short batch must stay last: the loader cuts the stream every batch_size rows.
        last = [batches.pop()] if batches and len(batches[-1]) < self._batch_size else []
        shuffled = torch.randperm(len(batches), generator=generator).tolist()
        for batch in [*(batches[i] for i in shuffled), *last]:
            yield from batch


def collate(examples: Sequence[Example]) -> dict[str, Tensor]:
    """Pads on the right to the longest row; the mask makes the value of the padding irrelevant."""
    longest = max(len(example.input_ids) for example in examples)
    shape = (len(examples), longest)
    input_ids = torch.zeros(shape, dtype=torch.long)  # [batch, longest]
    attention_mask = torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, IGNORED, dtype=torch.long)
    for row, example in enumerate(examples):
        length = len(example.input_ids)
        input_ids[row, :length] = torch.tensor(example.input_ids, dtype=torch.long)
        labels[row, :length] = torch.tensor(example.labels, dtype=torch.long)
        attention_mask[row, :length] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
