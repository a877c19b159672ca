"""An exported model beside transformers: ragged rows, padded left, prefill and decode."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from artifacts.exported.graph import ExportedModel, GraphBatch

LENGTHS = (5, 9, 7)  # tokens of each row
WIDTH = max(LENGTHS)
CAPACITY = 24
NUM_STEPS = 4


def sequences(vocab_size: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(3, vocab_size, (n + NUM_STEPS,), generator=generator) for n in LENGTHS]


def expected_logits(reference: Any, vocab_size: int) -> list[Tensor]:
    """Of each row by itself, without padding and without cache."""
    with torch.no_grad():
        return [reference(row[None]).logits[0].float() for row in sequences(vocab_size)]


def prompts(vocab_size: int) -> GraphBatch:
    """All rows at once, padded left; the logits of all tokens are wanted."""
    rows = len(LENGTHS)
    ids = torch.zeros(rows, WIDTH, dtype=torch.int64)
    positions, mask = torch.zeros_like(ids), torch.zeros(rows, CAPACITY, dtype=torch.int64)
    for row, (tokens, n) in enumerate(zip(sequences(vocab_size), LENGTHS, strict=True)):
        ids[row, WIDTH - n :] = tokens[:n]
        positions[row, WIDTH - n :] = torch.arange(n)
        mask[row, WIDTH - n : WIDTH] = 1
    wanted = torch.arange(WIDTH).expand(rows, WIDTH).contiguous()
    return GraphBatch(ids, positions, torch.zeros(rows, dtype=torch.int64), mask, wanted)


def step(vocab_size: int, number: int, mask: Tensor) -> GraphBatch:
    """The next token of each row; ``mask`` is taken over and grows."""
    tokens = sequences(vocab_size)
    mask[:, WIDTH + number] = 1
    ids = torch.stack([tokens[row][n + number] for row, n in enumerate(LENGTHS)])[:, None]
    positions = torch.tensor([[n + number] for n in LENGTHS])
    start = torch.full((len(LENGTHS),), WIDTH + number)
    return GraphBatch(ids, positions, start, mask, torch.zeros_like(positions))


def logits_of(model: ExportedModel) -> list[Tensor]:
    """Of each row's own tokens, prompt and steps."""
    vocab = model.shape.vocab_size
    # What a former user left there must not matter.
    cache = [tensor.fill_(7.7) for tensor in model.shape.new_cache(len(LENGTHS), CAPACITY)]
    batch = prompts(vocab)
    found = model.run(batch, cache).clone()
    rows = [[found[row, WIDTH - n :]] for row, n in enumerate(LENGTHS)]
    for number in range(NUM_STEPS):
        found = model.run(step(vocab, number, batch.attention_mask), cache).clone()
        for row, parts in enumerate(rows):
            parts.append(found[row])
    return [torch.cat(parts) for parts in rows]


def largest_difference(model: ExportedModel, reference: Any) -> float:
    expected = expected_logits(reference, model.shape.vocab_size)
    pairs = zip(logits_of(model), expected, strict=True)
    return max(float((found - wanted).abs().max()) for found, wanted in pairs)
