"""What each way to merge a QLoRA adapter costs: into the base as it is, or as it was quantised."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from artifacts.heldout import HeldOutRow
from export.quantized_base import is_double
from export.source import MergeChoice, Source, merged_model

MERGES: tuple[MergeChoice, ...] = ("dequantized", "original")
_MAX_ROWS = 8
_MAX_TOKENS = 64  # of a row


def merge_costs(source: Source, rows: Sequence[HeldOutRow]) -> dict[MergeChoice, float]:
    """KL per token, in nats, from the adapter on bitsandbytes' quantised base to each merge of it.

    For a ``source`` whose ``quantization`` is not "none", whatever its ``merge``; the first rows
    are enough, and no more are looked at: ``merge_costs(source, questions.rows)``. Everything is
    computed in float32, so rounding to the base's own format is not among the costs. One model is
    in memory at a time, at four bytes a weight at most.
    """
    ids = [row.token_ids[:_MAX_TOKENS] for row in rows[:_MAX_ROWS]]
    wanted = list(_log_probabilities(_on_quantized_base(source), ids))
    return {
        merge: _divergence(wanted, _log_probabilities(_merged(source, merge), ids))
        for merge in MERGES
    }


def _merged(source: Source, merge: MergeChoice) -> Any:
    return merged_model(replace(source, merge=merge))


def _on_quantized_base(source: Source) -> Any:
    """PEFT's model in eval mode, but for the quantised layers, which compute as in training.

    In eval mode int8 would also round its inputs and nf4 its scales.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    if source.quantization == "nf4":
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.float32,
            bnb_4bit_use_double_quant=is_double(source),
        )
    else:
        quantization = BitsAndBytesConfig(load_in_8bit=True)
    base = AutoModelForCausalLM.from_pretrained(
        source.base.path,
        dtype=torch.float32,
        quantization_config=quantization,
        device_map={"": "cpu"},
        local_files_only=True,
    )
    model = PeftModel.from_pretrained(base, str(source.folder)).eval()
    for module in model.modules():
        if type(getattr(module, "weight", None)).__name__ in ("Params4bit", "Int8Params"):
            module.training = True
    return model


@torch.no_grad()
def _log_probabilities(model: Any, rows: Sequence[Sequence[int]]) -> Iterator[Tensor]:
    """Of each row [num_tokens, vocab_size]."""
    for ids in rows:
        logits = model(torch.tensor([ids]), use_cache=False).logits[0]
        yield torch.log_softmax(logits.double(), dim=-1)  # a cost may be 1e-10


def _divergence(wanted: Sequence[Tensor], found: Iterator[Tensor]) -> float:
    total, num_tokens = 0.0, 0
    for p, q in zip(wanted, found, strict=True):
        total += float((p.exp() * (p - q)).sum())
        num_tokens += len(p)
    return total / num_tokens
