"""Gates that let a version be registered and still fail it. Pure rules: no torch, no model.

``default`` asks for a held-out loss below the base's. ``strict`` adds the thresholds of practice;
those on tasks, robustness and forgetting need an evaluation suite, and say so where none ran. What
would make a version useless or false (no effect, no parity, NaN) is refused in ``training.gate``
before it comes here.
"""

from __future__ import annotations

import math
from typing import Literal

from artifacts.manifest import GateResult
from artifacts.results import Results, TaskResult

Profile = Literal["default", "strict"]

MIN_PERPLEXITY_DROP = 0.35
MIN_TASK_GAIN = 0.15  # of the base's figure
MIN_BLEU4 = 0.45
MIN_ROBUSTNESS = 0.88  # figure under noise, as a share of the figure without
MAX_FORGETTING = 0.05  # rise of the perplexity on general text


def held_out_gates(
    profile: Profile, base_loss: float, adapter_loss: float, objective: str
) -> list[GateResult]:
    """From the mean losses on the untouched test part, in nats."""
    loss = GateResult(
        name="held_out_loss",
        value=adapter_loss,
        threshold=base_loss,
        passed=adapter_loss < base_loss,
        detail="must be below the base's",
    )
    if profile == "default":
        return [loss]
    if objective != "sft":
        detail = f"{objective} has a loss of preferences, no perplexity"
        return [loss, _not_measured("perplexity_drop", MIN_PERPLEXITY_DROP, detail)]
    drop = -math.expm1(min(adapter_loss - base_loss, 700.0))
    return [loss, _at_least("perplexity_drop", drop, MIN_PERPLEXITY_DROP)]


def suite_gates(results: Results | None) -> list[GateResult]:
    """The strict profile's demands on a suite's results; None: no suite ran."""
    if results is None:
        thresholds = {
            "task_metric": MIN_TASK_GAIN,
            "bleu4": MIN_BLEU4,
            "robustness": MIN_ROBUSTNESS,
            "forgetting": MAX_FORGETTING,
        }
        why = "no suite is named in the configuration"
        return [_not_measured(name, threshold, why) for name, threshold in thresholds.items()]
    asked = [task for task in results.tasks if task.kind != "perplexity"]
    gates = [_task_gain(task) for task in asked]
    gates += [
        _at_least(f"bleu4:{task.name}", task.figures["adapter"]["bleu4"], MIN_BLEU4)
        for task in asked
        if task.kind == "generation"
    ]
    gates += [_robustness(task) for task in asked]
    if not asked:
        why = "the suite has no task that generates"
        gates += [_not_measured("task_metric", MIN_TASK_GAIN, why)]
    return [*gates, _forgetting(results)]


def _task_gain(task: TaskResult) -> GateResult:
    name = f"task_metric:{task.name}"
    base, adapter = (task.figures[subject][task.main] for subject in ("base", "adapter"))
    if base == 0:  # from nothing, any gain is more than any share
        detail = f"{task.main} rose from 0 to {adapter:.4g}" if adapter else f"{task.main} is 0"
        return GateResult(
            name=name, value=None, threshold=MIN_TASK_GAIN, passed=adapter > 0, detail=detail
        )
    gain = _at_least(name, (adapter - base) / base, MIN_TASK_GAIN)
    return gain.model_copy(update={"detail": f"{task.main} {base:.4g} → {adapter:.4g}"})


def _robustness(task: TaskResult) -> GateResult:
    name = f"robustness:{task.name}"
    noisy = task.robustness.get("adapter", {})
    scores = {kind: noise.score for kind, noise in noisy.items() if noise.score is not None}
    if not scores:
        why = "the task asks for no noise" if not noisy else "no text changed, or the figure is 0"
        return _not_measured(name, MIN_ROBUSTNESS, why)
    worst = min(scores, key=lambda kind: (scores[kind], kind))
    gate = _at_least(name, scores[worst], MIN_ROBUSTNESS)
    return gate.model_copy(update={"detail": f"worst under {worst}"})


def _forgetting(results: Results) -> GateResult:
    if results.forgetting is None:
        why = "the suite names no general set"
        return _not_measured("forgetting", MAX_FORGETTING, why)
    rise = results.forgetting
    return GateResult(
        name="forgetting",
        value=_finite(rise),
        threshold=MAX_FORGETTING,
        passed=rise <= MAX_FORGETTING,
        detail="rise of the perplexity on the general set",
    )


def _at_least(name: str, value: float, threshold: float) -> GateResult:
    return GateResult(
        name=name, value=_finite(value), threshold=threshold, passed=value >= threshold
    )


def _not_measured(name: str, threshold: float, why: str) -> GateResult:
    return GateResult(name=name, value=None, threshold=threshold, passed=None, detail=why)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
