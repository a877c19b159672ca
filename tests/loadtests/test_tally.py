"""Counts, percentiles and the bound of a split."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.split import shares
from loadtests.sse import Answer
from loadtests.tally import UNKNOWN, Tally, percentile


@given(st.lists(st.floats(0, 1e6, allow_nan=False), min_size=1, max_size=50), st.floats(0, 100))
def test_percentiles_agree_with_numpy(values: list[float], q: float) -> None:
    assert percentile(values, q) == pytest.approx(float(np.percentile(values, q)))


def test_a_percentile_of_nothing_is_nothing() -> None:
    assert percentile([], 90) is None


def test_rows_count_requests_errors_and_tokens() -> None:
    tally = Tally()
    tally.add("tea@1", Answer("a", 0.1, [0.1, 0.15], 5, "stop"), total_s=0.5)
    tally.add("tea@2", Answer("b", 0.3, [0.3], 1, "stop"), total_s=0.5)
    tally.add_error("tea@1")
    tally.add_error(None)
    summary = tally.summary()
    assert summary["versions"]["tea@1"]["requests"] == 2
    assert summary["versions"]["tea@1"]["errors"] == 1
    assert summary["versions"]["tea@1"]["tokens_per_s"] == pytest.approx(10)
    assert summary["versions"]["tea@1"]["itl_ms"]["p50"] == pytest.approx(50)
    assert summary["versions"][UNKNOWN]["errors"] == 1
    assert summary["total"]["requests"] == 4
    assert summary["total"]["ttft_ms"]["p50"] == pytest.approx(200)


def test_workers_reports_add_up_to_the_whole() -> None:
    whole, master, workers = Tally(), Tally(), [Tally(), Tally()]
    for index in range(9):
        answer = Answer("a", 0.01 * index, [0.01 * index, 0.2], 3, "stop")
        for tally in (whole, workers[index % 2]):
            tally.add(f"tea@{index % 3}", answer, total_s=1)
        master.merge(json.loads(json.dumps(workers[index % 2].drain())))
    for part in ("total", "versions"):
        assert master.summary()[part] == whole.summary()[part]


def test_a_fair_split_is_within_and_a_wrong_one_is_not() -> None:
    weights = {"tea@1": 70.0, "tea@2": 30.0}
    draws = random.Random(7).choices(list(weights), list(weights.values()), k=500)
    counts = {model: draws.count(model) for model in weights}
    assert all(share.is_within for share in shares(weights, counts))
    assert not any(s.is_within for s in shares(weights, {"tea@1": 250, "tea@2": 250}))
    assert not any(s.is_within for s in shares(weights, {"tea@1": 500}))


def test_answers_by_strangers_break_the_split() -> None:
    """Requests that left the experiment must not go unnoticed."""
    split = shares({"tea@1": 70, "tea@2": 30}, {"tea@1": 350, "tea@2": 150, "base": 300})
    assert not all(share.is_within for share in split)
