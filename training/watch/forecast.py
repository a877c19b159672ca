"""What a run will take, told before its first step: parameters, memory, time.

Gradients and optimizer states are counted. A step's tensors are measured on a few rows, forwards
and backwards, at their most, and scaled to the largest batch of the first epoch: so every method,
dtype and checkpointing choice is right without a formula of its own. What the base and the
libraries take is measured too. Time is the speed of those rows.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import psutil
import torch
from torch import Tensor

from training.batches import ShuffledBatches
from training.data.examples import lengths_of
from training.watch.memory import MemoryMark, peak_of

_PROBE_TOKENS = 256
_STATE_BYTES = {"adamw": 8, "adamw_8bit": 2, "paged_adamw_8bit": 2, "adafactor": 4, "sgd": 0}
_FORWARD_SHARE = 1 / 3  # of a training step; an evaluation takes no more
# Resident bytes per byte of a step's tensors: glibc keeps what is freed in pieces that the next
# batch, of other sizes, does not fit. The libraries' own buffers grow with a batch, too.
_HELD = 1.6 if not torch.cuda.is_available() else 1.1


@dataclass(frozen=True, slots=True)
class Forecast:
    """Bytes and seconds; ``activation_bytes`` belong to the largest batch."""

    trainable_parameters: int
    total_parameters: int
    weights_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int  # and a step's passing tensors
    peak_bytes: int  # above what the process takes before the base is loaded
    seconds: float

    def as_event(self) -> dict[str, Any]:
        share = self.trainable_parameters / self.total_parameters
        return {
            "event": "forecast",
            **asdict(self),
            "trainable_share": share,
            "free_bytes": free_bytes(),
        }


def make_forecast(trainer: Any, first_step: int, mark: MemoryMark) -> Forecast:
    """``trainer`` is a ``training.loop.MethodTrainer`` that is about to go on from ``first_step``.

    ``mark`` was taken before the base was loaded. Leaves weights, gradients and random state as
    they were.
    """
    model = trainer.model
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients = sum(p.nbytes for p in trained)
    tokens = _Tokens(trainer)
    weights = sum(t.nbytes for t in [*model.parameters(), *model.buffers()])
    probe = _probe(trainer, weights, mark)
    steps_left = trainer.args.max_steps - first_step
    evaluations = steps_left / trainer.args.eval_steps if trainer.args.eval_steps else 0
    work = steps_left * tokens.per_step + evaluations * tokens.validation * _FORWARD_SHARE
    step = max(0, probe.peak_bytes - gradients) / probe.num_tokens * tokens.largest_batch
    optimizer = sum(p.numel() for p in trained) * _STATE_BYTES[trainer.config.optimizer]
    return Forecast(
        trainable_parameters=sum(p.numel() for p in trained),
        total_parameters=sum(p.numel() for p in model.parameters()),
        weights_bytes=weights,
        gradient_bytes=gradients,
        optimizer_bytes=optimizer,
        activation_bytes=round(step),
        peak_bytes=round(weights + probe.scratch_bytes + gradients + optimizer + _HELD * step),
        seconds=work * probe.seconds / probe.num_tokens,
    )


def free_bytes() -> int:
    """What this process may still take, on the GPU if there is one."""
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    return int(psutil.virtual_memory().available)


class _Tokens:
    """How many tokens the run will see."""

    def __init__(self, trainer: Any) -> None:
        lengths = lengths_of(trainer.split.train)
        batches: ShuffledBatches = trainer.make_batches()
        sizes = [sum(lengths[i] for i in batch) for batch in batches]
        self.largest_batch = max(sizes)
        self.per_step = sum(sizes) / len(sizes) * trainer.args.gradient_accumulation_steps
        self.validation = sum(len(row.input_ids) for row in trainer.split.validation)


class _Probe(NamedTuple):
    """A few rows, forwards and backwards."""

    num_tokens: int
    peak_bytes: int  # of all tensors that were made on the way, at their most
    scratch_bytes: int  # what libraries took for themselves
    seconds: float


def _probe(trainer: Any, weights: int, mark: MemoryMark) -> _Probe:
    batch = trainer.objective.collate(_few(trainer.split.train))
    batch = {key: tensor.to(trainer.args.device) for key, tensor in batch.items()}
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):
        mark.begin_peak()
        peak = peak_of(lambda: _step(trainer, batch))  # it warms up too
        scratch = max(0, round(mark.recent_peak() - weights - _HELD * peak))
        began = time.perf_counter()
        _step(trainer, batch)
        seconds = time.perf_counter() - began
    return _Probe(batch["input_ids"].numel(), peak, scratch, seconds)


def _step(trainer: Any, batch: dict[str, Tensor]) -> None:
    trainer.model.train()
    with trainer.accelerator.autocast():
        loss = trainer.objective.summed_loss(trainer.model, batch)
    loss.backward()
    trainer.model.zero_grad(set_to_none=True)


def _few(rows: Sequence[Any]) -> list[Any]:
    """Rows spread over the data with about ``_PROBE_TOKENS`` tokens, at least one."""
    few: list[Any] = []
    num_tokens = 0
    for index in range(0, len(rows), max(1, len(rows) // 16)):
        few.append(rows[index])
        num_tokens += len(rows[index].input_ids)
        if num_tokens >= _PROBE_TOKENS:
            break
    return few
