"""The waits of a moment ago, under a clock of our own."""

from __future__ import annotations

import pytest

from server.reporting.first_tokens import WINDOW_S, FirstTokens
from server.reporting.telemetry import Telemetry
from tests.server.test_telemetry import Clock

PATIENCE_S = 1.0


def wait(tokens: FirstTokens, clock: Clock, seconds: float) -> None:
    request = object()
    tokens.began(request, clock.now)
    clock.now += seconds
    tokens.came(request)
    tokens.ended(request)


def test_the_p90_of_what_was_waited() -> None:
    clock = Clock()
    tokens = FirstTokens(clock)
    assert tokens.p90_s(PATIENCE_S) is None
    for tenth in range(1, 11):
        wait(tokens, clock, tenth / 10)
    assert tokens.p90_s(PATIENCE_S) == pytest.approx(0.9, rel=0.01)


def test_it_is_forgotten_after_the_window() -> None:
    clock = Clock()
    tokens = FirstTokens(clock)
    wait(tokens, clock, 0.5)
    clock.now += WINDOW_S - 2
    wait(tokens, clock, 0.1)
    assert tokens.p90_s(PATIENCE_S) == pytest.approx(0.5, rel=0.01)
    clock.now += 3
    assert tokens.p90_s(PATIENCE_S) == pytest.approx(0.1, rel=0.01)
    clock.now += WINDOW_S
    assert tokens.p90_s(PATIENCE_S) is None
    assert not tokens._slots


def test_who_still_waits_counts_once_it_is_too_long() -> None:
    clock = Clock()
    tokens = FirstTokens(clock)
    for _ in range(8):
        wait(tokens, clock, 0.1)
    standing = [object() for _ in range(2)]
    for request in standing:
        tokens.began(request, clock.now)
    clock.now += PATIENCE_S
    assert tokens.p90_s(PATIENCE_S) == pytest.approx(0.1, rel=0.01)  # so far nobody is too late
    clock.now += 4
    assert tokens.p90_s(PATIENCE_S) == pytest.approx(5, rel=0.01)
    for request in standing:
        tokens.ended(request)  # they left without a token
    assert tokens.p90_s(PATIENCE_S) == pytest.approx(0.1, rel=0.01)


def test_telemetry_tells_it_of_every_request_once() -> None:
    clock = Clock()
    telemetry = Telemetry(clock)
    timer = telemetry.begin("a@1", "arm", clock.now)
    clock.now += 0.3
    timer.tokens(1)
    clock.now += 9
    timer.tokens(1)
    timer.tokens(1, choice=1)
    left = telemetry.begin("a@1", None, clock.now)
    clock.now += 5
    assert telemetry.first_tokens.p90_s(PATIENCE_S) == pytest.approx(5, rel=0.01)
    left.finish("aborted")
    telemetry.reset()
    assert telemetry.first_tokens.p90_s(PATIENCE_S) == pytest.approx(0.3, rel=0.01)
    timer.finish("ok")
    assert not telemetry.first_tokens._waiting
