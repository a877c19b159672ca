"""The thresholds of the gates, each at its edge, and what is said of what nobody measured."""

from __future__ import annotations

import math
from typing import Any

import pytest

from artifacts.manifest import GateResult
from artifacts.results import Noise, Results, TaskResult
from training.verdict import held_out_gates, suite_gates


def by_name(gates: list[GateResult]) -> dict[str, GateResult]:
    assert len({gate.name for gate in gates}) == len(gates)
    return {gate.name: gate for gate in gates}


def task(main: str, base: float, adapter: float, **more: Any) -> TaskResult:
    kind = {"accuracy": "classification", "bleu4": "generation"}.get(main, "perplexity")
    figures = {who: {main: figure} for who, figure in (("base", base), ("adapter", adapter))}
    facts = {"num_rows": 9, "num_left_out": 0, "differences": ()}
    return TaskResult(name="t", kind=kind, main=main, figures=figures, **facts | more)


def results(*tasks: TaskResult, general: TaskResult | None = None) -> Results:
    return Results(suite="s", suite_hash="h", seed=0, subjects={}, tasks=tasks, general=general)


@pytest.mark.parametrize(("adapter", "passes"), [(1.9, True), (2.0, False), (2.1, False)])
def test_the_default_asks_for_a_lower_loss(adapter: float, passes: bool) -> None:
    (gate,) = held_out_gates("default", 2.0, adapter, "sft")
    assert (gate.name, gate.passed, gate.value, gate.threshold) == (
        "held_out_loss",
        passes,
        adapter,
        2.0,
    )


@pytest.mark.parametrize(("drop", "passes"), [(0.36, True), (0.34, False), (-9.0, False)])
def test_strict_asks_for_a_third_less_perplexity(drop: float, passes: bool) -> None:
    gates = by_name(held_out_gates("strict", 2.0, 2.0 + math.log(1 - drop), "sft"))
    assert gates["perplexity_drop"].passed is passes
    assert gates["perplexity_drop"].value == pytest.approx(drop)


def test_a_loss_of_preferences_has_no_perplexity() -> None:
    gates = by_name(held_out_gates("strict", 0.69, 0.4, "dpo"))
    assert gates["held_out_loss"].passed
    assert gates["perplexity_drop"].passed is None
    assert "no perplexity" in gates["perplexity_drop"].detail


def test_a_loss_beyond_all_numbers_is_no_crash() -> None:
    gates = by_name(held_out_gates("strict", 1.0, 5000.0, "sft"))
    assert gates["perplexity_drop"].passed is False


def test_without_a_suite_nothing_of_it_is_passed_or_failed() -> None:
    gates = by_name(suite_gates(None))
    assert set(gates) == {"task_metric", "bleu4", "robustness", "forgetting"}
    assert all(gate.passed is None and gate.value is None for gate in gates.values())
    assert all("no suite" in gate.detail for gate in gates.values())


@pytest.mark.parametrize(("adapter", "passes"), [(0.4601, True), (0.459, False), (0.2, False)])
def test_a_task_must_gain_a_share_of_the_bases_figure(adapter: float, passes: bool) -> None:
    gate = by_name(suite_gates(results(task("accuracy", 0.4, adapter))))["task_metric:t"]
    assert gate.passed is passes
    assert gate.value == pytest.approx(adapter / 0.4 - 1)


@pytest.mark.parametrize(("adapter", "passes"), [(0.01, True), (0.0, False)])
def test_from_nothing_any_gain_is_enough(adapter: float, passes: bool) -> None:
    gate = by_name(suite_gates(results(task("accuracy", 0.0, adapter))))["task_metric:t"]
    assert (gate.passed, gate.value) == (passes, None)


@pytest.mark.parametrize(("bleu", "passes"), [(0.45, True), (0.449, False)])
def test_generation_has_a_bleu_to_reach(bleu: float, passes: bool) -> None:
    gates = by_name(suite_gates(results(task("bleu4", 0.1, bleu))))
    assert gates["bleu4:t"].passed is passes
    assert "bleu4:t" not in by_name(suite_gates(results(task("accuracy", 0.1, bleu))))


def noisy(**scores: float | None) -> dict[str, dict[str, Noise]]:
    return {
        "base": {"typos": Noise(clean=1, noisy=0.1, score=0.1, num_changed=5, num_questions=9)},
        "adapter": {
            kind: Noise(clean=1, noisy=0.9, score=score, num_changed=5, num_questions=9)
            for kind, score in scores.items()
        },
    }


@pytest.mark.parametrize(("case", "passes"), [(0.88, True), (0.87, False)])
def test_robustness_is_the_adapters_worst(case: float, passes: bool) -> None:
    robustness = noisy(typos=0.95, case=case, homophones=None)
    gates = by_name(suite_gates(results(task("accuracy", 0.1, 0.9, robustness=robustness))))
    assert gates["robustness:t"].passed is passes
    assert gates["robustness:t"].value == case
    assert gates["robustness:t"].detail == "worst under case"


def test_noise_that_changed_nothing_measures_nothing() -> None:
    robustness = noisy(homophones=None)
    gates = by_name(suite_gates(results(task("accuracy", 0.1, 0.9, robustness=robustness))))
    assert gates["robustness:t"].passed is None
    assert "no text changed" in gates["robustness:t"].detail


@pytest.mark.parametrize(("rise", "passes"), [(0.049, True), (0.051, False), (-0.5, True)])
def test_forgetting_is_the_rise_of_the_perplexity(rise: float, passes: bool) -> None:
    general = task("loss", 3.0, 3.0 + math.log1p(rise))
    gates = by_name(suite_gates(results(task("accuracy", 0.1, 0.9), general=general)))
    assert gates["forgetting"].passed is passes
    assert gates["forgetting"].value == pytest.approx(rise)


def test_a_suite_without_tasks_or_general_set_says_so() -> None:
    gates = by_name(suite_gates(results(task("perplexity", 9.0, 3.0))))
    assert gates["task_metric"].passed is None
    assert "no task that generates" in gates["task_metric"].detail
    assert gates["forgetting"].passed is None
    assert "names no general set" in gates["forgetting"].detail
