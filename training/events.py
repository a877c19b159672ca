"""What a run says while it works: JSON lines for a program, or a progress bar for a person.

Stdout belongs to the events alone: ``claim_stdout`` moves everything else that writes there,
C libraries included, to stderr. Knows no torch.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import IO, Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from training.doctor.words import summary_lines

Event = dict[str, Any]


class Reporter(Protocol):
    """Takes every event of a run, in order."""

    def emit(self, event: Event) -> None: ...

    def close(self) -> None: ...


def claim_stdout() -> IO[str]:
    """The real stdout as a stream of our own; file descriptor 1 points to stderr from here on."""
    sys.stdout.flush()
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return stream


class JsonLines:
    """One JSON object per line, flushed at once. A reader that went away is reported by ``lost``.

    The run then ends like an interrupted one: whoever restarts it must not find it still writing.
    """

    def __init__(self, stream: IO[str], lost: Callable[[], None]) -> None:
        self._stream = stream
        self._lost = lost
        self._is_lost = False

    def emit(self, event: Event) -> None:
        if self._is_lost:
            return
        try:
            self._stream.write(json.dumps(event, ensure_ascii=False) + "\n")
            self._stream.flush()
        except BrokenPipeError:
            self._is_lost = True
            self._lost()

    def close(self) -> None:
        if not self._is_lost:
            self._stream.close()


class ProgressBar:
    """A bar with loss, learning rate, speed and ETA on stderr; the outcome in words below it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._progress.add_task("loading", total=None, figures="")
        self._progress.start()

    def emit(self, event: Event) -> None:
        say: dict[str, Callable[[Event], None]] = {
            "noted": self._noted,
            "data_checked": self._data_checked,
            "forecast": self._forecast,
            "started": self._started,
            "progress": self._moved,
            "evaluated": self._evaluated,
            "suite": self._suite,
            "diagnosis": self._diagnosed,
            "remedy": self._remedied,
            "used": self._used,
            "published": self._published,
            "stage_published": self._published,
            "failed": self._failed,
            "interrupted": self._interrupted,
        }
        if event["event"] in ("published", "failed", "interrupted"):
            self._progress.stop()  # the outcome stands below the bar
        if event["event"] in say:
            say[event["event"]](event)

    def close(self) -> None:
        self._progress.stop()

    def _noted(self, event: Event) -> None:
        for note in event["notes"]:
            self._console.print(f"note: {note}", markup=False)

    def _data_checked(self, event: Event) -> None:
        for line in summary_lines(event):
            self._console.print(line, markup=False)

    def _forecast(self, event: Event) -> None:
        self._console.print(
            f"forecast: {event['trainable_parameters']:,} trainable parameters "
            f"({event['trainable_share']:.2%}), peak memory {_size(event['peak_bytes'])} "
            f"(weights {_size(event['weights_bytes'])}, optimizer "
            f"{_size(event['gradient_bytes'] + event['optimizer_bytes'])}, activations "
            f"{_size(event['activation_bytes'])}), time {_duration(event['seconds'])}"
        )
        if event["peak_bytes"] > event["free_bytes"] + event["weights_bytes"]:
            self._console.print(
                f"[red]only {_size(event['free_bytes'])} more are free: lower batch_size or "
                "max_length, or set gradient_checkpointing[/red]"
            )

    def _started(self, event: Event) -> None:
        self._console.print(
            f"{event['num_train']} train, {event['num_validation']} validation, "
            f"{event['num_test']} test rows"
        )
        self._progress.update(self._task, description="training", total=event["total_steps"])

    def _moved(self, event: Event) -> None:
        figures = (
            f"loss {event['loss']:.3f}  lr {event['learning_rate']:.1e}  "
            f"{event['tokens_per_s']:.0f} tok/s  CPU {event['cpu_percent']:.0f} %"
        )
        if "gpu_percent" in event:
            figures += f"  GPU {event['gpu_percent']:.0f} %"
        self._progress.update(self._task, completed=event["step"], figures=figures)

    def _evaluated(self, event: Event) -> None:
        self._console.print(f"step {event['step']}: validation loss {event['validation_loss']:.4f}")

    def _diagnosed(self, event: Event) -> None:
        self._console.print(
            f"step {event['step']}: {event['symptom'].replace('_', ' ')}: {event['seen']}.\n"
            f"  cause: {event['cause']}\n  remedy: {event['remedy']}",
            markup=False,
        )

    def _remedied(self, event: Event) -> None:
        changes = ", ".join(f"{key}={value}" for key, value in event["changes"].items())
        self._console.print(f"{event['symptom'].replace('_', ' ')}: again with {changes}")
        self._progress.reset(self._task, description="loading", total=None, figures="")

    def _used(self, event: Event) -> None:
        self._console.print(
            f"peak memory {_size(event['peak_bytes'])} (forecast "
            f"{_size(event['forecast_peak_bytes'])}), training {_duration(event['seconds'])} "
            f"(forecast {_duration(event['forecast_seconds'])})"
        )

    def _suite(self, event: Event) -> None:
        self._progress.update(self._task, description=f"suite {event['suite']}: {event['subject']}")

    def _published(self, event: Event) -> None:
        kind, metrics = "adapter" if "adapter" in event else "model", event["metrics"]
        if "stage" in event:
            self._console.print(f"stage {event['stage']} of {event['num_stages']}:")
        self._console.print(
            f"[bold]{event[kind]}[/bold] in {event['duration_s']:.0f} s: held-out perplexity "
            f"{metrics['base_perplexity']:.2f} → {metrics[f'{kind}_perplexity']:.2f}"
        )
        if kind == "model":
            self._console.print(f"a base of its own: {event['path']}", markup=False)
        for gate in event["failed_gates"]:
            self._console.print(f"gate failed: {gate}", markup=False)

    def _failed(self, event: Event) -> None:
        self._console.print(f"failed ({event['code']}): {event['message']}", markup=False)

    def _interrupted(self, event: Event) -> None:
        self._console.print(
            f"interrupted at step {event['step']}; resume=true continues from the last checkpoint"
        )


def _size(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.0f} MiB"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
