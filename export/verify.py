"""Whether a merged model answers as its adapter does: logits against PEFT's own, in float32.

One model at a time is in memory. Knows nothing of how the merging was done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from artifacts.base import Base, load_transformers_model, open_base
from artifacts.errors import Corrupt, InvalidInput

ROWS = (
    "What is the capital of France, and how do I get there by train?",
    "我的订单 20481 到哪里了？请帮我查一下物流。",
    "def mean(values):\n    return sum(values) / len(values)",
)
MAX_TOKENS = 64
# Largest difference of a logit, as a share of the base's largest; a merge rounds to these formats.
TOLERANCE = {"torch.float32": 1e-4, "torch.bfloat16": 5e-2, "torch.float16": 1e-2}


@dataclass(frozen=True, slots=True)
class Difference:
    """Shares of the base's largest logit."""

    effect: float  # adapter against base
    difference: float  # merged against adapter
    tolerance: float


def compare(base: Base, adapter: Path, merged: Path) -> Difference:
    """``adapter`` is a PEFT folder. Raises Corrupt if the merged model answers differently."""
    _check_memory(base)
    rows = [base.tokenizer(text)["input_ids"][:MAX_TOKENS] for text in ROWS]
    plain, adapted = _logits_of_both(base, adapter, rows)
    found = _logits(load_transformers_model(open_base(merged), "float32"), rows)
    scale = plain.abs().max().item()
    result = Difference(
        effect=(adapted - plain).abs().max().item() / scale,
        difference=(found - adapted).abs().max().item() / scale,
        tolerance=TOLERANCE.get(str(base.config.dtype), max(TOLERANCE.values())),
    )
    if not result.difference <= result.tolerance:  # also true for NaN
        raise Corrupt(
            f"the merged model's logits differ from the adapter's by {result.difference:.1e} of "
            f"the base's largest (allowed: {result.tolerance:.0e}); nothing was kept"
        )
    return result


def _logits_of_both(base: Base, adapter: Path, rows: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    from peft import PeftModel

    model = load_transformers_model(base, "float32")
    plain = _logits(model, rows)
    return plain, _logits(PeftModel.from_pretrained(model, str(adapter)), rows)


@torch.no_grad()
def _logits(model: Any, rows: Sequence[list[int]]) -> Tensor:
    """Of every token of every row, [num_tokens, vocab]."""
    return torch.cat([model(torch.tensor([row]), use_cache=False).logits[0] for row in rows])


def _check_memory(base: Base) -> None:
    import psutil

    from artifacts.base import Checkpoint

    wanted = 4 * sum(tensor.numel() for tensor in Checkpoint(base).values())
    free = psutil.virtual_memory().available
    if free < wanted:
        raise InvalidInput(
            f"comparing the merged model with the adapter takes {wanted / 1e9:.1f} GB of memory, "
            f"{free / 1e9:.1f} GB are free; --no-verify leaves the comparison out"
        )
