"""When training stands aside, by a clock of our own."""

from __future__ import annotations

import pytest

from server.jobs.pause_rule import PauseRule

TARGET_S, AFTER_S, LONGEST_S = 0.2, 2.0, 30.0


@pytest.fixture
def rule() -> PauseRule:
    return PauseRule(TARGET_S, AFTER_S, LONGEST_S)


def pause(rule: PauseRule, at: float = 0.0) -> None:
    assert rule.look(0.5, at) is None
    change = rule.look(0.5, at + AFTER_S)
    assert change is not None
    assert change.pauses


def test_it_pauses_after_the_configured_time_and_not_before(rule: PauseRule) -> None:
    assert [rule.look(0.5, at) for at in (10.0, 11.0, 11.9)] == [None] * 3
    change = rule.look(0.41, 12.0)
    assert change is not None
    assert change.pauses
    assert "410 ms" in change.reason
    assert "200 ms for 2.0 s" in change.reason
    assert change.facts == {"ttft_p90_ms": 410.0, "target_ms": 200.0, "over_s": 2.0}


def test_a_moment_within_the_target_starts_the_time_anew(rule: PauseRule) -> None:
    assert rule.look(0.5, 10.0) is None
    assert rule.look(0.2, 11.5) is None  # the target itself is within it
    assert [rule.look(0.5, at) for at in (12.0, 13.9)] == [None] * 2
    assert rule.look(0.5, 14.0) is not None


def test_so_does_a_moment_without_chats(rule: PauseRule) -> None:
    assert [rule.look(p90, at) for p90, at in ((0.5, 10.0), (None, 11.0), (0.5, 12.5))] == [
        None
    ] * 3


def test_it_goes_on_once_the_p90_is_well_within_the_target(rule: PauseRule) -> None:
    pause(rule)
    assert [rule.look(p90, 5.0) for p90 in (0.5, 0.21, 0.19)] == [None] * 3
    change = rule.look(0.15, 8.0)
    assert change is not None
    assert not change.pauses
    assert "after 6.0 s" in change.reason
    assert change.facts == {"ttft_p90_ms": 150.0, "target_ms": 200.0, "paused_s": 6.0}


def test_it_goes_on_when_nobody_chats(rule: PauseRule) -> None:
    pause(rule)
    change = rule.look(None, 3.0)
    assert change is not None
    assert not change.pauses
    assert "nobody chats" in change.reason


def test_it_has_a_slice_after_the_longest_pause(rule: PauseRule) -> None:
    pause(rule)
    assert rule.look(0.5, AFTER_S + LONGEST_S - 0.1) is None
    change = rule.look(0.5, AFTER_S + LONGEST_S)
    assert change is not None
    assert not change.pauses
    assert "30 s at a time" in change.reason
    pause(rule, at=40.0)  # not before AFTER_S has passed again, which `pause` asserts


def test_a_forgotten_pause_is_none(rule: PauseRule) -> None:
    pause(rule)
    rule.forget()
    pause(rule, at=100.0)
