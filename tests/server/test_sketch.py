"""Percentiles against the sorted values themselves."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from server.reporting.sketch import RELATIVE_ERROR, DurationSketch


def exact(values: list[float], q: float) -> float:
    return sorted(values)[max(1, math.ceil(q * len(values))) - 1]


@pytest.mark.parametrize("seed", range(5))
def test_percentiles_are_right_to_one_percent_for_any_distribution(seed: int) -> None:
    rng = random.Random(seed)
    draws: list[Callable[[], float]] = [
        lambda: rng.lognormvariate(-3, 1.5),
        lambda: rng.uniform(0.001, 9),
        lambda: rng.choice([0.01, 5.0]),
        lambda: rng.expovariate(20),
        lambda: 0.123,
    ]
    draw = draws[seed]
    values = [draw() for _ in range(5000)]
    sketch = DurationSketch()
    for value in values:
        sketch.add(value)
    for q in (0.01, 0.5, 0.9, 0.99, 1.0):
        measured = sketch.percentile(q)
        assert measured == pytest.approx(exact(values, q), rel=RELATIVE_ERROR, abs=1e-6)


def test_one_value_is_exact_and_none_is_none() -> None:
    sketch = DurationSketch()
    assert sketch.percentile(0.5) is None
    sketch.add(0.0417)
    assert sketch.percentile(0.5) == pytest.approx(0.0417)


def test_merging_equals_adding_everything_to_one() -> None:
    rng = random.Random(1)
    parts, whole = [DurationSketch() for _ in range(7)], DurationSketch()
    for part in parts:
        for _ in range(rng.randrange(200)):
            value = rng.expovariate(3)
            part.add(value)
            whole.add(value)
    merged = DurationSketch()
    for part in parts:
        merged.merge(part)
    assert merged.count == whole.count
    assert [merged.percentile(q / 100) for q in range(1, 101)] == [
        whole.percentile(q / 100) for q in range(1, 101)
    ]


def test_packing_changes_nothing_whenever_it_is_done() -> None:
    rng = random.Random(2)
    packed, whole, into = DurationSketch(), DurationSketch(), DurationSketch()
    for index in range(900):
        value = rng.expovariate(3)
        packed.add(value)
        whole.add(value)
        if index in (0, 100, 700):
            packed.pack()
    into.merge(packed)
    for sketch in (packed, into):
        assert sketch.count == whole.count
        for q in (0.0, 0.1, 0.5, 0.9, 0.99, 1.0):
            assert sketch.percentile(q) == whole.percentile(q)
        assert sketch.cumulative([0.1, 1.0, math.inf]) == whole.cumulative([0.1, 1.0, math.inf])


def test_a_packed_sketch_holds_more_than_32_bits_can_count() -> None:
    sketch = DurationSketch()
    sketch.add(0.5, count=3 << 31)
    sketch.pack()
    assert sketch.cumulative([math.inf]) == [3 << 31]


def test_cumulative_counts_are_monotone_and_end_at_the_count() -> None:
    sketch = DurationSketch()
    for value in (0.002, 0.011, 0.05, 0.5, 100.0):
        sketch.add(value, 2)
    bounds = [0.001, 0.01, 0.1, 1.0, math.inf]
    assert sketch.cumulative(bounds) == [0, 2, 6, 8, 10]
