"""Batches and the loss over them, against the plain way of doing it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.batches import LengthGroupedSampler, collate
from training.data.examples import IGNORED, Example
from training.evaluation import held_out_loss


def example(length: int, first_target: int = 1) -> Example:
    ids = [(7 * length + i) % 200 for i in range(length)]
    return Example(ids, [IGNORED] * first_target + ids[first_target:])


@given(
    lengths=st.lists(st.integers(2, 90), min_size=1, max_size=60),
    batch_size=st.integers(1, 9),
    epoch=st.integers(0, 3),
)
def test_every_row_comes_once_per_epoch_whatever_the_sizes(
    lengths: list[int], batch_size: int, epoch: int
) -> None:
    sampler = LengthGroupedSampler([example(n) for n in lengths], batch_size, seed=1)
    sampler.set_epoch(epoch)
    order = list(sampler)
    assert sorted(order) == list(range(len(lengths)))
    assert order == list(sampler)


def test_like_lengths_meet_and_epochs_differ() -> None:
    examples = [example(2 + (37 * i) % 80) for i in range(160)]

    def padded(order: list[int]) -> int:
        batches = [order[i : i + 8] for i in range(0, 160, 8)]
        return sum(8 * max(len(examples[i].input_ids) for i in batch) for batch in batches)

    sampler = LengthGroupedSampler(examples, 8, seed=1)
    first = list(sampler)
    sampler.set_epoch(1)
    assert first != list(sampler)
    assert padded(first) < 0.75 * padded(list(range(160)))


def test_padding_is_masked_and_without_loss() -> None:
    batch = collate([example(3), example(5, first_target=4)])
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1] * 5]
    assert batch["labels"][0, 3:].tolist() == [IGNORED, IGNORED]
    assert batch["labels"][1].tolist()[:4] == [IGNORED] * 4


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_held_out_loss_is_per_token_whatever_the_batches(tiny_base: Path, batch_size: int) -> None:
    """Reference: transformers' own loss, row by row, without padding."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_base, dtype="float32")
    examples = [example(5 + 3 * i, first_target=1 + 2 * i) for i in range(8)]
    total = 0.0
    for row in examples:
        batch = {key: t for key, t in collate([row]).items() if key != "attention_mask"}
        with torch.no_grad():
            total += model(**batch).loss.item() * row.num_targets
    found = held_out_loss(model, examples, batch_size)
    assert found.num_tokens == sum(row.num_targets for row in examples)
    assert found.loss == pytest.approx(total / found.num_tokens, rel=1e-5)
