"""What a trained adapter must be before it may be published. Knows no trainer and no registry.

1. Its loss on the untouched test part is a number.
2. It changes the logits at all.
3. Read back from disk by the code that serves it and merged into the base's weights (W + s·B·A), it
   gives the logits of the live PEFT model: the file, its scaling and its reader agree.

How good it is decides what may point to it: ``training.verdict``.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from artifacts.adapter import LoraWeights
from artifacts.manifest import GateResult
from training.batches import collate
from training.data.examples import Example
from training.errors import GateFailed
from training.evaluation import HeldOutLoss, forward, to_device
from training.methods.quantized import dense_weight, is_quantized

NUM_PROBE_ROWS = 4
MAX_PROBE_TOKENS = 256

# Largest difference of a probe logit, as a share of the base's largest.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
INT8_TOLERANCE = 5e-2


@dataclass(frozen=True, slots=True)
class Probe:
    """Logits over a few rows, three ways; shares are of the base's largest logit."""

    effect: float  # adapter against base
    difference: float  # merged against unmerged
    tolerance: float
    logits_hash: str  # SHA-256 of the merged logits, float32, in row order


@torch.no_grad()
def probe_logits(model: Any, examples: Sequence[Example]) -> Tensor:
    """Logits of every token of a few rows, [num_tokens, vocab], float32."""
    rows = [
        Example(row.input_ids[:MAX_PROBE_TOKENS], row.labels[:MAX_PROBE_TOKENS])
        for row in examples[:NUM_PROBE_ROWS]
    ]
    model.eval()
    return forward(model, to_device(collate(rows), next(model.parameters()).device)).float()


def probe_adapter(
    model: Any, adapted: Tensor, weights: LoraWeights, examples: Sequence[Example]
) -> Probe:
    """Compares base, live adapter (its logits, ``adapted``) and merged copy.

    Merges in place: the model is spent afterwards, because a second copy of a large base would not
    fit beside it. Raises GateFailed if a module of ``weights`` is not in the model.
    """
    tolerance = _tolerance(model.get_base_model())
    with model.disable_adapter():
        base = probe_logits(model, examples)
        _merge(model.get_base_model(), weights)
        merged = probe_logits(model, examples)
    scale = base.abs().max().item()  # of the base: a ruined adapter may give zeros
    return Probe(
        effect=(adapted - base).abs().max().item() / scale,
        difference=(merged - adapted).abs().max().item() / scale,
        tolerance=tolerance,
        logits_hash=hashlib.sha256(merged.cpu().numpy().tobytes()).hexdigest(),
    )


def check_gate(adapter: HeldOutLoss, probe: Probe) -> list[GateResult]:
    """The gates passed. Raises GateFailed with the figure that makes the adapter worthless."""
    if not math.isfinite(adapter.loss):
        raise GateFailed(
            f"the held-out loss of the adapter is {adapter.loss}; train with a lower learning_rate"
        )
    if not probe.effect > 0:
        raise GateFailed("the adapter changes no logit of the probe rows; it has no effect")
    if not probe.difference <= probe.tolerance:
        raise GateFailed(
            f"merged and unmerged logits differ by {probe.difference:.1e} of the base's largest "
            f"(allowed: {probe.tolerance:.0e}); the saved adapter is not the trained one"
        )
    return [
        GateResult(name="effect", value=probe.effect, threshold=0.0, passed=True),
        GateResult(name="parity", value=probe.difference, threshold=probe.tolerance, passed=True),
    ]


def _tolerance(base_model: Any) -> float:
    """8-bit layers round what goes into them, which merged ones do not."""
    has_8_bit = any(type(p).__name__ == "Int8Params" for p in base_model.parameters())
    return INT8_TOLERANCE if has_8_bit else TOLERANCE[next(base_model.parameters()).dtype]


@torch.no_grad()
def _merge(base_model: Any, weights: LoraWeights) -> None:
    for path, pair in weights.pairs.items():
        try:
            linear = base_model.get_submodule(path)
        except AttributeError as error:
            raise GateFailed(f"the saved adapter names {path}, which the base has not") from error
        base_layer = getattr(linear, "base_layer", linear)
        delta = pair.scaling * (pair.b.float() @ pair.a.float())
        if is_quantized(base_layer):  # no sum of two matrices is 4 or 8 bits wide
            linear.base_layer = _dense(base_layer, delta)
        else:
            base_layer.weight += delta.to(base_layer.weight)


def _dense(quantized: Any, delta: Tensor) -> torch.nn.Linear:
    """What the layer computes with, in full, and ``delta``."""
    weight = dense_weight(quantized).float()
    dense = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=quantized.bias is not None)
    dense.weight = torch.nn.Parameter(weight + delta.to(weight), requires_grad=False)
    if quantized.bias is not None:
        dense.bias = torch.nn.Parameter(quantized.bias.float(), requires_grad=False)
    return dense
