"""The watch room's eyes and hands in transformers' Trainer."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from training.events import Reporter
from training.watch.doctor import Doctor

_FALLING = 0.5  # of the largest learning rate so far: below it, a flat loss is no finding


class LiveDoctor(TrainerCallback):  # type: ignore[misc]
    """Emits ``diagnosis`` events. A resumed run first reads its own past, silently."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._doctor = Doctor()
        self._largest_rate = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        for entry in state.log_history:
            self._read(entry)
            self._doctor.look()

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._read(kwargs["logs"])
        for diagnosis in self._doctor.look():
            self._reporter.emit(
                {"event": "diagnosis", "step": state.global_step, **asdict(diagnosis)}
            )

    def _read(self, logs: dict[str, Any]) -> None:
        history = self._doctor.history
        if "eval_loss" in logs:
            history.add_evaluation(logs["eval_loss"])
        elif "loss" in logs:
            self._largest_rate = max(self._largest_rate, logs["learning_rate"])
            history.learning_rate_is_falling = logs["learning_rate"] < _FALLING * self._largest_rate
            history.add_step(logs["loss"], logs.get("grad_norm"))
