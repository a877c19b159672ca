"""The losses of a run as a PNG: every step, a running mean, and the validation loss."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def plot_losses(log_history: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """Draws transformers' ``log_history``; nothing where there is no loss yet."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps = [(entry["step"], entry["loss"]) for entry in log_history if "loss" in entry]
    held_out = [
        (entry["step"], entry["eval_loss"]) for entry in log_history if "eval_loss" in entry
    ]
    if not steps:
        return
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(*zip(*steps, strict=True), color="tab:blue", alpha=0.25, linewidth=0.8, label="step")
    axes.plot(*zip(*_running_mean(steps), strict=True), color="tab:blue", label="running mean")
    if held_out:
        axes.plot(*zip(*held_out, strict=True), "o-", color="tab:orange", label="validation")
    axes.set(xlabel="optimizer step", ylabel="loss per token (nats)", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def _running_mean(steps: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Exponential, over about a twentieth of the run, unbiased at the start."""
    keep = 1 - 1 / max(1.0, len(steps) / 20)
    mean = weight = 0.0
    means = []
    for step, loss in steps:
        mean, weight = keep * mean + (1 - keep) * loss, keep * weight + (1 - keep)
        means.append((step, mean / weight))
    return means
