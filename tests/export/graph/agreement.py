"""The largest difference of logits between an exported model and transformers."""

from __future__ import annotations

from typing import Any

import torch

from artifacts.exported.graph import ExportedModel, GraphBatch

LENGTHS = (5, 9, 7)  # tokens of each row
CAPACITY = 24
NUM_STEPS = 4


def largest_difference(model: ExportedModel, reference: Any) -> float:
    """Left-padded ragged prompts, every token's logits, then steps of one token a row."""
    torch.manual_seed(3)
    vocab = model.shape.vocab_size
    rows, width = len(LENGTHS), max(LENGTHS)
    cache = [c.fill_(7.7) for c in model.shape.new_cache(rows, CAPACITY)]  # what a former user left
    tokens = [torch.randint(3, vocab, (n + NUM_STEPS,)) for n in LENGTHS]
    ids = torch.zeros(rows, width, dtype=torch.int64)
    positions, mask = torch.zeros_like(ids), torch.zeros(rows, CAPACITY, dtype=torch.int64)
    for row, n in enumerate(LENGTHS):
        ids[row, width - n :] = tokens[row][:n]
        positions[row, width - n :] = torch.arange(n)
        mask[row, width - n : width] = 1
    wanted = torch.arange(width).expand(rows, width).contiguous()
    start = torch.zeros(rows, dtype=torch.int64)
    found = model.run(GraphBatch(ids, positions, start, mask, wanted), cache)
    with torch.no_grad():
        expected = [reference(row[None]).logits[0].float() for row in tokens]
    differences = [
        (found[row, width - n :] - expected[row][:n]).abs().max() for row, n in enumerate(LENGTHS)
    ]
    for step in range(NUM_STEPS):
        mask[:, width + step] = 1
        new = torch.stack([tokens[row][n + step] for row, n in enumerate(LENGTHS)])[:, None]
        at = torch.tensor([[n + step] for n in LENGTHS])
        batch = GraphBatch(new, at, start + width + step, mask, torch.zeros_like(at))
        found = model.run(batch, cache)
        differences += [
            (found[row, 0] - expected[row][n + step]).abs().max() for row, n in enumerate(LENGTHS)
        ]
    return float(torch.stack(differences).max())
