"""Plots of results: each task's main figure by subject, differences with intervals, noise.

No pyplot: it keeps global state and wants a display. The files hold no date and no version.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from artifacts.results import Results, TaskResult
from artifacts.safe_write import write_bytes

_WIDTH = 0.8  # of a group of bars


def draw(results: Results, folder: Path) -> list[Path]:
    """Writes what there is to see; returns the files."""
    asked = [task for task in results.tasks if task.kind != "perplexity"]
    noisy = [task for task in asked if task.robustness]
    files = []
    if asked:
        files.append(_save(folder / "tasks.png", lambda axes: _tasks(axes, asked), len(asked)))
    if any(task.differences for task in asked):
        name = folder / "differences.png"
        files.append(_save(name, lambda axes: _differences(axes, asked), len(asked)))
    for task in noisy:
        path = folder / f"robustness-{task.name}.png"
        files.append(_save(path, lambda axes, task=task: _robustness(axes, task), 4))
    return files


def _save(path: Path, fill: Any, num_groups: int) -> Path:
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(5.0, 1.6 * num_groups), 4.0), layout="constrained")
    canvas: Any = FigureCanvasAgg(figure)
    fill(figure.add_subplot())
    image = io.BytesIO()
    canvas.print_png(image, metadata={"Software": None})
    write_bytes(path, image.getvalue())
    return path


def _tasks(axes: Any, tasks: list[TaskResult]) -> None:
    groups = {who: [task.figures[who][task.main] for task in tasks] for who in tasks[0].figures}
    _bars(axes, [f"{task.name}\n{task.main}" for task in tasks], groups)
    axes.set_ylim(0, 1)


def _robustness(axes: Any, task: TaskResult) -> None:
    kinds = list(next(iter(task.robustness.values())))
    groups = {
        who: [math.nan if (score := noises[kind].score) is None else score for kind in kinds]
        for who, noises in task.robustness.items()
    }
    _bars(axes, kinds, groups)
    axes.set_title(f"{task.name}: {task.main} under noise, as a share of clean")


def _bars(axes: Any, labels: list[str], groups: dict[str, list[float]]) -> None:
    width = _WIDTH / len(groups)
    for place, (who, heights) in enumerate(groups.items()):
        offset = (place - (len(groups) - 1) / 2) * width
        bars = axes.bar([x + offset for x in range(len(labels))], heights, width, label=who)
        axes.bar_label(bars, fmt="%.2f", fontsize=8)
    axes.set_xticks(range(len(labels)), labels)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))


def _differences(axes: Any, tasks: list[TaskResult]) -> None:
    """The main figures' differences; an interval that meets the line may be luck."""
    found = [
        (f"{task.name} − {each.to}", each)
        for task in tasks
        for each in task.differences
        if each.metric == task.main
    ]
    for y, (_, each) in enumerate(found):
        axes.plot([each.low, each.high], [y, y], color="C0")
        axes.plot([each.difference], [y], "o", color="C0")
    axes.axvline(0, color="grey", linewidth=1)
    axes.set_yticks(range(len(found)), [label for label, _ in found])
    axes.set_xlabel("adapter less the other, 95 % interval")
