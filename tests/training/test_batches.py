"""Batches and the loss over them, against the plain way of doing it."""

from __future__ import annotations

from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.batches import ShuffledBatches, collate
from training.data.examples import IGNORED, Example
from training.evaluation import forward, held_out_loss, summed_loss


def example(length: int, first_target: int = 1) -> Example:
    ids = [(7 * length + 3 * i) % 200 for i in range(length)]
    return Example(ids, [IGNORED] * first_target + ids[first_target:])


LENGTHS = st.lists(st.integers(2, 90), min_size=1, max_size=60)


@given(lengths=LENGTHS, batch_size=st.integers(1, 9), epoch=st.integers(0, 3))
def test_every_row_comes_once_per_epoch_whatever_the_sizes(
    lengths: list[int], batch_size: int, epoch: int
) -> None:
    sampler = ShuffledBatches([example(n) for n in lengths], batch_size, seed=1)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert sorted(chain(*batches)) == list(range(len(lengths)))
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert (len(batches), batches) == (len(sampler), list(sampler))


@given(lengths=LENGTHS, max_tokens=st.integers(1, 400), epoch=st.integers(0, 3))
def test_packed_batches_are_full_and_as_many_in_every_epoch(
    lengths: list[int], max_tokens: int, epoch: int
) -> None:
    sampler = ShuffledBatches([example(n) for n in lengths], 1, 1, max_tokens)
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert sorted(chain(*batches)) == list(range(len(lengths)))
    assert len(batches) == len(sampler)
    tokens = [sum(lengths[i] for i in batch) for batch in batches]
    assert all(0 < n < 2 * max(max_tokens, max(lengths)) + max(lengths) for n in tokens)


def test_epochs_differ_and_depend_on_the_seed() -> None:
    examples = [example(2 + i % 30) for i in range(160)]
    orders = []
    for seed, epoch in [(1, 0), (1, 1), (2, 0)]:
        sampler = ShuffledBatches(examples, 8, seed)
        sampler.set_epoch(epoch)
        orders.append(list(sampler))
    assert all(one != other for one, other in pairwise(orders))


def test_rows_lie_end_to_end_and_start_without_a_target() -> None:
    batch = collate([example(3, first_target=0), example(5, first_target=4)])
    assert batch["input_ids"].shape == (1, 8)
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 2, 3, 4]]
    assert batch["lengths"].tolist() == [3, 5]
    wanted = [[IGNORED, 24, 27, IGNORED, IGNORED, IGNORED, IGNORED, 47]]
    assert batch["labels"].tolist() == wanted


@pytest.fixture(scope="module", params=["full attention", "a window of 8"])
def model(tiny_base: Path, request: pytest.FixtureRequest) -> Any:
    """The tiny base as Llama, and as Mistral with a window shorter than most rows."""
    from transformers import AutoModelForCausalLM, MistralConfig, MistralForCausalLM

    llama = AutoModelForCausalLM.from_pretrained(tiny_base, dtype="float32")
    if request.param == "full attention":
        return llama
    values = {k: v for k, v in llama.config.to_dict().items() if k not in ("model_type",)}
    mistral = MistralForCausalLM(MistralConfig(**values | {"sliding_window": 8}))
    mistral.load_state_dict(llama.state_dict())
    return mistral.eval()


ROWS = [example(5 + 3 * i, first_target=1 + 2 * i) for i in range(8)]


def test_a_row_sees_nothing_of_its_neighbours(model: Any) -> None:
    """Reference: transformers' own attention, row by row."""
    with torch.no_grad():
        together = forward(model, collate(ROWS))
        model.set_attn_implementation("eager")
        alone = [model(input_ids=torch.tensor([row.input_ids])).logits[0] for row in ROWS]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_sixteen_bit_batches_come_in_few_sizes_and_mean_the_same(model: Any) -> None:
    """Kernels are compiled per size; the row that fills up is seen by nobody."""
    seen: list[tuple[int, int]] = []

    def note(_module: Any, arguments: Any, options: dict[str, Any]) -> None:
        seen.append((options["input_ids"].shape[1], len(options["logits_to_keep"])))

    wanted = [forward(model, collate(ROWS[:count])) for count in (1, 2, 3, 8)]
    model.to(torch.bfloat16)
    hook = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        for count, logits in zip((1, 2, 3, 8), wanted, strict=True):
            found = forward(model, collate(ROWS[:count])).float()
            torch.testing.assert_close(found, logits, rtol=0.1, atol=0.1)
            summed_loss(model, collate(ROWS[:count]))
    finally:
        hook.remove()
        model.float()
    assert all(tokens % 64 == 0 and targets % 32 == 0 for tokens, targets in seen)


def test_without_segments_the_model_answers_as_ever(model: Any) -> None:
    """Padding on the left and a cache, as ``generate`` uses them, after a training step."""
    ids = torch.tensor([[5, 5, *ROWS[0].input_ids]])
    mask = torch.tensor([[0, 0] + [1] * 5])
    options: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": 4, "do_sample": False}
    forward(model, collate(ROWS))
    found = model.generate(ids, **options)
    model.set_attn_implementation("eager")
    assert found.tolist() == model.generate(ids, **options).tolist()


def test_gradients_are_those_of_plain_training(model: Any) -> None:
    """Also through checkpointed layers and with the loss taken in several pieces."""
    total = sum(row.num_targets for row in ROWS)
    model.set_attn_implementation("eager")
    model.zero_grad()
    for row in ROWS:
        ids, labels = (torch.tensor([list(part)]) for part in (row.input_ids, row.labels))
        (model(input_ids=ids, labels=labels).loss * row.num_targets / total).backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters()}
    for piece_logits, checkpointed in [(1 << 26, False), (3 * 300, False), (1 << 26, True)]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("training.evaluation._MAX_LOGITS", piece_logits)
            if checkpointed:
                model.activation_checkpointing_enable({"use_reentrant": False})
            model.train()
            model.zero_grad()
            (summed_loss(model, collate(ROWS)) / total).backward()
            model.activation_checkpointing_disable()
            model.eval()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_held_out_loss_is_per_token_whatever_the_batches(model: Any, batch_size: int) -> None:
    """Reference: transformers' own loss, row by row."""
    model.set_attn_implementation("eager")
    total = 0.0
    for row in ROWS:
        ids, labels = (torch.tensor([list(part)]) for part in (row.input_ids, row.labels))
        with torch.no_grad():
            total += model(input_ids=ids, labels=labels).loss.item() * row.num_targets
    found = held_out_loss(model, ROWS, batch_size)
    assert found.num_tokens == sum(row.num_targets for row in ROWS)
    assert found.loss == pytest.approx(total / found.num_tokens, rel=1e-5)
