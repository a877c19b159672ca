"""Exports without a folder: the merged model behind every form's contract, and faults in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from artifacts.adapter import LoraWeights
from artifacts.exported.graph import AdapterInputs, ExportedModel, GraphBatch
from artifacts.exported.slab import ATTENTION
from artifacts.exported.transformers_model import TransformersModel
from export.proof.prove import Reference, compare, judged
from export.source import merged_model

Fault = Callable[[GraphBatch], GraphBatch]


def right(reference: Reference) -> TransformersModel:
    return changed(reference, lambda model: None)


def changed(reference: Reference, change: Callable[[Any], None]) -> TransformersModel:
    """What ``change`` makes of the merged model's weights."""
    model = merged_model(reference.source, attention=ATTENTION)
    with torch.no_grad():
        change(model)
    return TransformersModel(model)


class Faulty:
    """Computes another batch than the one it is given, or hands out other logits."""

    takes_adapters = False

    def __init__(
        self,
        model: ExportedModel,
        fault: Fault = lambda batch: batch,
        spoil: Callable[[Tensor], Tensor] = lambda logits: logits,
    ) -> None:
        self.shape = model.shape
        self._model, self._fault, self._spoil = model, fault, spoil

    def run(
        self, batch: GraphBatch, cache: Sequence[Tensor], adapter: AdapterInputs | None = None
    ) -> Tensor:
        return self._spoil(self._model.run(self._fault(batch), cache, adapter))

    def pack(self, weights: LoraWeights) -> AdapterInputs:
        raise NotImplementedError


def failures(model: ExportedModel, reference: Reference, form: str = "onnx") -> list[str]:
    figures = compare(model, reference, None, lambda _: None)
    return judged(form, reference.source, figures)[1]


def is_step(batch: GraphBatch) -> bool:
    return batch.input_ids.shape[1] == 1


def drop_mask(batch: GraphBatch) -> GraphBatch:
    return replace(batch, attention_mask=torch.ones_like(batch.attention_mask))


def swap_positions(batch: GraphBatch) -> GraphBatch:
    """Of the last two tokens of a call."""
    swapped = batch.position_ids.clone()
    swapped[:, -2:] = swapped[:, -2:].flip(1)
    return replace(batch, position_ids=swapped)


def reverse_positions(batch: GraphBatch) -> GraphBatch:
    """Of all tokens of a call."""
    return replace(batch, position_ids=batch.position_ids.flip(1))


def step_later(batch: GraphBatch) -> GraphBatch:
    """Decode steps count from the step behind."""
    return replace(batch, position_ids=batch.position_ids + 1) if is_step(batch) else batch


def write_over_the_last(batch: GraphBatch) -> GraphBatch:
    """A decode step takes the place of the token before it."""
    return replace(batch, cache_start=batch.cache_start - 1) if is_step(batch) else batch


def write_where_the_first_row_writes(batch: GraphBatch) -> GraphBatch:
    """Right as long as all rows are of one length."""
    starts = batch.cache_start[:1].expand(len(batch.cache_start)).contiguous()
    return replace(batch, cache_start=starts)
