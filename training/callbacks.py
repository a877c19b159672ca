"""What transformers' Trainer tells the outside while it runs: events, and when to stop.

State that must survive a resume lives in the trainer's own state: the loss of every step is in
``log_history``, the patience in ``training.early_stopping``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, Protocol

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from training.errors import GateFailed
from training.events import Reporter
from training.signals import StopRequest
from training.watch.usage import Usage


class TokenCounter(Protocol):
    """Counts the tokens trained on in this process; the trainer is one."""

    num_tokens: int


class ProgressEvents(TrainerCallback):  # type: ignore[misc]
    """Emits progress, evaluated and checkpoint events; stops a run whose loss is not a number."""

    def __init__(self, reporter: Reporter, counter: TokenCounter, logging_steps: int) -> None:
        self._reporter = reporter
        self._counter = counter
        self._logging_steps = logging_steps
        self._began = (0.0, 0)  # time and step at which this process began to train
        self._usage = Usage()
        self._last = (0.0, 0)  # time and tokens at the last progress line

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        now = time.monotonic()
        self._began, self._last = (now, state.global_step), (now, 0)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """The trainer logs every step, so a window of losses is the same after a resume."""
        logs = kwargs["logs"]
        if "loss" not in logs:
            return
        step = state.global_step
        if not math.isfinite(logs["loss"]):
            raise GateFailed(
                f"the loss became {logs['loss']} at step {step}; lower learning_rate or "
                "raise warmup_ratio"
            )
        if step % self._logging_steps == 0 or step == state.max_steps:
            self._report_progress(state, logs["learning_rate"])

    def _report_progress(self, state: TrainerState, learning_rate: float) -> None:
        step, now = state.global_step, time.monotonic()
        (begin_s, begin_step), (last_s, last_tokens) = self._began, self._last
        seconds_per_step = (now - begin_s) / (step - begin_step)
        self._last = (now, self._counter.num_tokens)
        self._reporter.emit({
            "event": "progress",
            "step": step,
            "total_steps": state.max_steps,
            "epoch": round(state.epoch, 3),
            "loss": self._window_loss(state),
            "learning_rate": learning_rate,
            "tokens_per_s": round((self._counter.num_tokens - last_tokens) / (now - last_s), 1),
            "eta_s": round(seconds_per_step * (state.max_steps - step), 1),
            "trained_tokens": self._counter.num_tokens,  # by this process
            **self._usage.read(),
        })  # fmt: skip

    def _window_loss(self, state: TrainerState) -> float:
        """Mean loss of the steps since the last progress line, checkpoint or not in between."""
        begin = state.global_step - (state.global_step - 1) % self._logging_steps
        losses: list[float] = []
        for entry in reversed(state.log_history):
            if entry["step"] < begin:
                break
            if "loss" in entry:
                losses.append(entry["loss"])
        return sum(losses) / len(losses)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        loss = kwargs["metrics"]["eval_loss"]
        self._reporter.emit(
            {"event": "evaluated", "step": state.global_step, "validation_loss": loss}
        )

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        path = f"{args.output_dir}/checkpoint-{state.global_step}"
        self._reporter.emit({"event": "checkpoint", "step": state.global_step, "path": path})


class AfterStep(TrainerCallback):  # type: ignore[misc]
    """Tells a method of every optimizer step, from 1, while the step's gradients still exist."""

    def __init__(self, after_step: Callable[[Any, int], None]) -> None:
        self._after_step = after_step

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._after_step(kwargs["model"], state.global_step + 1)


class Checkpoints(TrainerCallback):  # type: ignore[misc]
    """Checkpoints besides those at evaluations: every ``save_steps``, and when asked to stop."""

    def __init__(self, stop: StopRequest, save_steps: int | None) -> None:
        self._stop = stop
        self._save_steps = save_steps

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self._save_steps is not None and state.global_step % self._save_steps == 0:
            control.should_save = True
        if self._stop.is_set:
            control.should_save = True
            control.should_training_stop = True
