"""Learn which of two replies is better (``objective: dpo``, arXiv:2305.18290; IPO 2310.12036).

TRL's DPOTrainer renders and tokenises its rows itself, so its prompts need not be those of serving,
and it has batches, evaluation and logs of its own; here our loop runs with this loss, which a test
holds against TRL's. The reference is the model as the run starts: the base, or the adapter
that ``start_from`` names. Its log-probabilities are taken once, before the first step, so no second
copy of anything stays in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid, relu

from training.batches import Batch, collate
from training.config import TrainingConfig
from training.data.examples import IGNORED, Example
from training.data.pairs import PairExample
from training.data.split import Split
from training.evaluation import target_logits, to_device


class PairBatch(Batch):
    """Chosen and rejected rows in turns: row 2i and row 2i + 1 are pair i."""

    reference: Tensor  # [num_rows], log-probabilities of the replies


class Preference:
    """A ``training.objectives.objective.Objective`` whose items are pairs."""

    def __init__(self, config: TrainingConfig) -> None:
        self._config = config

    def prepare(self, model: Any, split: Split, batch_size: int) -> Split:
        """Each pair with the reference's log-probabilities; ``model`` is the reference now."""
        parts = (split.train, split.validation, split.test)
        pairs = (cast(Sequence[PairExample], part) for part in parts)
        return Split(*(self._with_reference(model, part, batch_size) for part in pairs))

    def collate(self, rows: Sequence[PairExample]) -> PairBatch:
        sides = [side for row in rows for side in (row.chosen, row.rejected)]
        reference = torch.tensor([value for row in rows for value in row.reference])
        return cast(PairBatch, {**collate(sides), "reference": reference})

    def num_items(self, batches: Sequence[PairBatch]) -> Tensor:
        return torch.tensor(sum(len(batch["reference"]) for batch in batches) // 2)

    def summed_loss(self, model: Any, batch: PairBatch) -> Tensor:
        logs, lengths = reply_logs(model, batch)
        losses = preference_losses(logs - batch["reference"], lengths, self._config)
        chosen_nll = -logs[0::2] / lengths[0::2]  # as in arXiv:2404.19733
        return (losses + self._config.dpo_sft_weight * chosen_nll).sum()

    def validation_loss(self, model: Any, rows: Sequence[PairExample], batch_size: int) -> float:
        losses = [self.summed_loss(model, b).item() for b in self._batches(model, rows, batch_size)]
        return sum(losses) / len(rows)

    def supervised_rows(self, rows: Sequence[PairExample]) -> list[Example]:
        """The chosen replies: what the losses per token are taken of."""
        return [row.chosen for row in rows]

    def held_out(
        self, model: Any, rows: Sequence[PairExample], batch_size: int
    ) -> dict[str, float]:
        """Loss of the preferences alone, the reference's own, accuracy, mean reward margin."""
        ratios, lengths = [], []
        for batch in self._batches(model, rows, batch_size):
            logs, counts = reply_logs(model, batch)
            ratios.append(logs - batch["reference"])
            lengths.append(counts)
        ratio, length = torch.cat(ratios), torch.cat(lengths)
        margin = self._config.dpo_beta * (ratio[0::2] - ratio[1::2])
        losses = preference_losses(ratio, length, self._config)
        unmoved = preference_losses(torch.zeros_like(ratio), length, self._config)
        return {
            "preference_loss": losses.mean().item(),
            "reference_preference_loss": unmoved.mean().item(),
            "preference_accuracy": (margin > 0).float().mean().item(),
            "preference_margin": margin.mean().item(),
        }

    def _with_reference(
        self, model: Any, rows: Sequence[PairExample], batch_size: int
    ) -> list[Example]:
        logs = [
            reply_logs(model, batch)[0].cpu() for batch in self._batches(model, rows, batch_size)
        ]
        values = torch.cat(logs).tolist() if logs else []
        pairs = zip(values[0::2], values[1::2], strict=True)
        return [replace(row, reference=pair) for row, pair in zip(rows, pairs, strict=True)]

    def _batches(
        self, model: Any, rows: Sequence[PairExample], batch_size: int
    ) -> Iterator[PairBatch]:
        """In evaluation mode and without gradients, in the rows' order."""
        device = next(model.parameters()).device
        was_training = model.training
        model.eval()
        try:
            with torch.no_grad():
                for start in range(0, len(rows), batch_size):
                    batch = self.collate(rows[start : start + batch_size])
                    yield cast(PairBatch, to_device(batch, device))
        finally:
            model.train(was_training)


def reply_logs(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Log-probability and number of tokens of each row's reply, [num_rows] each, float32."""
    logits, targets = target_logits(model, batch)
    nll = cross_entropy(logits.float(), targets, reduction="none")  # [num_targets]
    row_of = torch.arange(len(batch["lengths"]), device=nll.device)
    row_of = row_of.repeat_interleave(batch["lengths"])  # [num_tokens]
    rows = row_of[1:][batch["labels"][0, 1:] != IGNORED]  # [num_targets]
    logs = nll.new_zeros(len(batch["lengths"])).index_add(0, rows, -nll)
    return logs, torch.bincount(rows, minlength=len(batch["lengths"]))


def preference_losses(ratios: Tensor, lengths: Tensor, config: TrainingConfig) -> Tensor:
    """Loss of each pair, [num_pairs], from the log-ratios to the reference, [2 · num_pairs].

    IPO compares means per token, as TRL does with its authors' consent. Label smoothing is
    conservative DPO's (https://ericmitchell.ai/cdpo.pdf).
    """
    beta = config.dpo_beta
    if config.dpo_loss == "ipo":
        means = ratios / lengths
        return (means[0::2] - means[1::2] - 1 / (2 * beta)) ** 2
    margin = beta * (ratios[0::2] - ratios[1::2])
    if config.dpo_loss == "hinge":
        return relu(1 - margin)
    wrong = config.dpo_label_smoothing
    return -(1 - wrong) * logsigmoid(margin) - wrong * logsigmoid(-margin)
