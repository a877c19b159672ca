"""What a run will take, told before its first step: parameters, memory, time.

Weights, gradients and optimizer states are counted. Activations are measured on a few rows, as the
bytes that autograd keeps per token, and scaled to the largest batch of the first epoch; so every
method, dtype and checkpointing choice is right without a formula of its own. What the process has
taken by then is measured too: libraries' scratch memory is more than a small base. Time is the
speed of those rows, forwards and backwards.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import psutil
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from training.batches import ShuffledBatches
from training.watch.memory import MemoryMark

_PROBE_TOKENS = 256
_STATE_BYTES = {"adamw": 8, "adamw_8bit": 2, "paged_adamw_8bit": 2, "adafactor": 4, "sgd": 0}
_FORWARD_SHARE = 1 / 3  # of a training step; an evaluation takes no more
_GAPS = 0.25  # of the activations: what an allocator holds between batches of different sizes


@dataclass(frozen=True, slots=True)
class Forecast:
    """Bytes and seconds; ``activation_bytes`` are those of the largest batch."""

    trainable_parameters: int
    total_parameters: int
    weights_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int
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


def make_forecast(trainer: Any, step: int, mark: MemoryMark) -> Forecast:
    """``trainer`` is a ``training.loop.MethodTrainer`` that is about to go on from ``step``.

    ``mark`` was taken before the base was loaded. Leaves weights, gradients and random state as
    they were.
    """
    model = trainer.model
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients = sum(p.nbytes for p in trained)
    tokens = _Tokens(trainer)
    probe = _probe(trainer)
    steps_left = trainer.args.max_steps - step
    evaluations = steps_left / trainer.args.eval_steps if trainer.args.eval_steps else 0
    work = steps_left * tokens.per_step + evaluations * tokens.validation * _FORWARD_SHARE
    activations = round(probe.bytes_per_token * tokens.largest_batch)
    optimizer = sum(p.numel() for p in trained) * _STATE_BYTES[trainer.config.optimizer]
    more = max(0, (1 + _GAPS) * activations - probe.bytes_per_token * probe.num_tokens)
    return Forecast(
        trainable_parameters=sum(p.numel() for p in trained),
        total_parameters=sum(p.numel() for p in model.parameters()),
        weights_bytes=sum(t.nbytes for t in [*model.parameters(), *model.buffers()]),
        gradient_bytes=gradients,
        optimizer_bytes=optimizer,
        activation_bytes=activations,
        peak_bytes=round(mark.rise() + optimizer + more),
        seconds=work * probe.seconds_per_token,
    )


def free_bytes() -> int:
    """What this process may still take, on the GPU if there is one."""
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    return int(psutil.virtual_memory().available)


class _Tokens:
    """How many tokens the run will see."""

    def __init__(self, trainer: Any) -> None:
        lengths = [len(row.input_ids) for row in trainer.split.train]
        batches: ShuffledBatches = trainer.make_batches()
        sizes = [sum(lengths[i] for i in batch) for batch in batches]
        self.largest_batch = max(sizes)
        self.per_step = sum(sizes) / len(sizes) * trainer.args.gradient_accumulation_steps
        self.validation = sum(len(row.input_ids) for row in trainer.split.validation)


class _SavedBytes:
    """Counts what autograd keeps for the backward pass, each storage once and no weights."""

    def __init__(self, model: Any) -> None:
        self._known = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self.total = 0

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._known:
            self._known.add(storage.data_ptr())
            self.total += storage.nbytes()
        return tensor


class _Probe(NamedTuple):
    """A few rows, forwards and backwards."""

    num_tokens: int
    bytes_per_token: float  # kept for the backward pass
    seconds_per_token: float


def _probe(trainer: Any) -> _Probe:
    few = _few(trainer.split.train)
    batch = trainer.objective.collate(few)
    batch = {key: tensor.to(trainer.args.device) for key, tensor in batch.items()}
    num_tokens = batch["input_ids"].numel()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    trainer.model.train()
    with torch.random.fork_rng(devices):
        seconds = []
        for _ in range(2):  # the first one warms up
            saved = _SavedBytes(trainer.model)
            began = time.perf_counter()
            with (
                saved_tensors_hooks(saved.pack, lambda tensor: tensor),
                trainer.accelerator.autocast(),
            ):
                loss = trainer.objective.summed_loss(trainer.model, batch)
            loss.backward()
            seconds.append(time.perf_counter() - began)
            trainer.model.zero_grad(set_to_none=True)
    return _Probe(num_tokens, saved.total / num_tokens, min(seconds) / num_tokens)


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
