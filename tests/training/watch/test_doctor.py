"""Each symptom from a history that shows it, and silence on healthy ones."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from training.watch.doctor import Doctor

Curve = Callable[[int, random.Random], float]


def healthy(step: int, draw: random.Random) -> float:
    return 1.0 + 2.0 * math.exp(-step / 60) + draw.gauss(0, 0.1)


def symptoms(
    loss: Curve, norm: Curve, num_steps: int = 150, validation: tuple[float, ...] = ()
) -> list[str]:
    """What is told over a run with these curves and evaluations spread over it, in order."""
    draw, doctor, told = random.Random(0), Doctor(), []
    every = num_steps // (len(validation) or 1)
    evaluations = iter(validation)
    for step in range(1, num_steps + 1):
        doctor.history.add_step(loss(step, draw), norm(step, draw))
        if validation and step % every == 0:
            doctor.history.add_evaluation(next(evaluations))
        told += [diagnosis.symptom for diagnosis in doctor.look()]
    return told


def steady(_step: int, draw: random.Random) -> float:
    return abs(draw.gauss(1.0, 0.2))


def test_a_healthy_run_is_left_alone() -> None:
    assert symptoms(healthy, steady, 400, (2.0, 1.7, 1.6, 1.58)) == []


def test_small_losses_may_swing() -> None:
    def learned(step: int, draw: random.Random) -> float:
        return 5.0 * math.exp(-step / 20) + abs(draw.gauss(0, 0.1))

    assert symptoms(learned, steady, 400) == []


CASES: list[tuple[str, Curve, Curve, tuple[float, ...]]] = [
    ("not_a_number", lambda s, d: math.nan if s > 30 else healthy(s, d), steady, ()),
    ("everything_masked", lambda s, d: 0.0, steady, ()),
    ("exploding_gradient", healthy, lambda s, d: 900.0 if s >= 100 else steady(s, d), ()),
    ("oscillation", lambda s, d: 2.0 + (-1) ** s * d.uniform(0.8, 1.6), steady, ()),
    ("plateau", lambda s, d: 3.0 + d.gauss(0, 0.02), steady, ()),
    ("overfitting", healthy, steady, (2.0, 1.8, 1.9, 2.1, 2.3)),
]


@pytest.mark.parametrize(
    ("symptom", "loss", "norm", "validation"), CASES, ids=[case[0] for case in CASES]
)
def test_each_symptom_is_told_once_and_alone(
    symptom: str, loss: Curve, norm: Curve, validation: tuple[float, ...]
) -> None:
    told = symptoms(loss, norm, validation=validation)
    assert told == [symptom]


def test_a_symptom_that_went_away_is_told_again() -> None:
    def twice(step: int, draw: random.Random) -> float:
        return 900.0 if step in (40, 41, 42, 90, 91, 92) else steady(step, draw)

    assert symptoms(healthy, twice, 120) == ["exploding_gradient"] * 2


def test_a_flat_end_of_a_decaying_schedule_is_no_plateau() -> None:
    doctor = Doctor()
    doctor.history.learning_rate_is_falling = True
    for _ in range(200):
        doctor.history.add_step(3.0, 1.0)
    assert doctor.look() == []
