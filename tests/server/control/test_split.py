"""Properties of the traffic split: shares, stickiness, and how little a re-weighting moves."""

from __future__ import annotations

import itertools
import math

from hypothesis import given, settings
from hypothesis import strategies as st

from server.comparison.split import SPACE, Segment, lay_out, locate, point_of, quotas

weights = st.dictionaries(
    st.sampled_from([f"shop@{number}" for number in range(1, 8)]),
    st.one_of(st.integers(1, 1000), st.floats(0.001, 1e6)),
    min_size=1,
    max_size=6,
)


def owned(segments: tuple[Segment, ...]) -> dict[str, int]:
    points: dict[str, int] = {}
    start = 0
    for segment in segments:
        points[segment.arm] = points.get(segment.arm, 0) + segment.end - start
        start = segment.end
    return points


def moved(before: tuple[Segment, ...], after: tuple[Segment, ...]) -> int:
    """Points whose owner differs."""
    edges = sorted({0} | {segment.end for segment in (*before, *after)})
    return sum(
        end - start
        for start, end in itertools.pairwise(edges)
        if locate(before, start) != locate(after, start)
    )


@given(weights)
def test_every_arm_owns_its_share_of_the_whole_space(chosen: dict[str, float]) -> None:
    wanted = quotas(chosen)
    assert sum(wanted.values()) == SPACE
    assert owned(lay_out(wanted)) == wanted
    total = sum(chosen.values())
    for arm, weight in chosen.items():
        assert abs(wanted[arm] - weight / total * SPACE) <= len(chosen) + 1


@settings(max_examples=200)
@given(st.lists(weights, min_size=2, max_size=6))
def test_reweighting_moves_exactly_the_total_variation(steps: list[dict[str, float]]) -> None:
    segments = lay_out(quotas(steps[0]))
    for chosen in steps[1:]:
        before = owned(segments)
        wanted = quotas(chosen)
        after = lay_out(wanted, segments)
        assert owned(after) == wanted
        lost = sum(max(0, points - wanted.get(arm, 0)) for arm, points in before.items())
        assert moved(segments, after) == lost
        segments = after


def test_the_same_weights_change_nothing() -> None:
    segments = lay_out(quotas({"shop@1": 70, "shop@2": 30}))
    assert lay_out(quotas({"shop@1": 0.7, "shop@2": 0.3}), segments) == segments


def test_three_arms_move_less_than_cumulative_boundaries_would() -> None:
    before = lay_out(quotas({"a": 50, "b": 30, "c": 20}))
    after = lay_out(quotas({"a": 40, "b": 30, "c": 30}), before)
    assert math.isclose(moved(before, after) / SPACE, 0.10, abs_tol=1e-6)
    cumulative = lay_out(quotas({"a": 40, "b": 30, "c": 30}))
    assert math.isclose(moved(before, cumulative) / SPACE, 0.20, abs_tol=1e-6)


def test_subjects_split_within_binomial_limits() -> None:
    segments = lay_out(quotas({"shop@1": 70, "shop@2": 30}))
    num_subjects = 20_000
    for salt in ("0011aabb", "ffee9988", "5a5a5a5a"):
        first = sum(
            locate(segments, point_of(salt, f"user-{number}")) == "shop@1"
            for number in range(num_subjects)
        )
        deviation = math.sqrt(num_subjects * 0.7 * 0.3)
        assert abs(first - 0.7 * num_subjects) < 4.5 * deviation


def test_salts_are_independent() -> None:
    segments = lay_out(quotas({"a": 1, "b": 1}))
    same = sum(
        locate(segments, point_of("one", str(number)))
        == locate(segments, point_of("two", str(number)))
        for number in range(10_000)
    )
    assert abs(same - 5_000) < 4.5 * 50


def test_any_text_can_be_a_subject() -> None:
    assert 0 <= point_of("salt", "\ud800 lone surrogate, 中文, \0") < SPACE
