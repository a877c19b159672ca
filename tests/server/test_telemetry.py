"""Counting by adapter and arm under a clock of our own."""

from __future__ import annotations

import random
import tracemalloc

import pytest

from server.engine.request import Timing
from server.reporting.telemetry import NUM_SLOTS, OTHER, SLOT_S, Telemetry


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def timing(generated: int = 4) -> Timing:
    return Timing(0.02, 0.1, 1.0, 7, 3, generated)


def answer(
    telemetry: Telemetry, clock: Clock, adapter: str, ttft_s: float, arm: str | None
) -> None:
    timer = telemetry.begin(adapter, arm, clock.now)
    clock.now += ttft_s
    timer.tokens(1)
    for _ in range(3):
        clock.now += 0.05
        timer.tokens(1)
    timer.timing(timing())
    timer.finish("ok")


def test_an_adapter_and_its_arm_count_the_same_request() -> None:
    clock = Clock()
    telemetry = Telemetry(clock)
    answer(telemetry, clock, "shop@1", 0.2, "shop/shop@1")
    answer(telemetry, clock, "base", 0.1, None)
    report = telemetry.report()
    assert set(report["adapters"]) == {"shop@1", "base"}
    assert set(report["arms"]) == {"shop/shop@1"}
    shop = report["adapters"]["shop@1"]
    assert shop == report["arms"]["shop/shop@1"]
    assert (shop["requests"], shop["errors"], shop["completion_tokens"]) == (1, 0, 4)
    assert shop["ttft_ms"]["p90"] == pytest.approx(200, rel=0.01)
    assert shop["itl_ms"]["p50"] == pytest.approx(50, rel=0.01)
    assert shop["queue_ms"]["p50"] == pytest.approx(20, rel=0.01)
    assert shop["tokens_per_s"] == pytest.approx(4 / 0.35, rel=0.01)
    assert (shop["prompt_tokens"], shop["cached_tokens"]) == (7, 3)


def test_errors_aborts_and_rejections_are_told_apart() -> None:
    clock = Clock()
    telemetry = Telemetry(clock)
    for outcome in ("ok", "error", "aborted"):
        telemetry.begin("a@1", None, clock.now).finish(outcome)
    telemetry.rejected("a@1", None)
    telemetry.failed("a@1", None)
    report = telemetry.report()["adapters"]["a@1"]
    assert (report["requests"], report["errors"], report["aborted"], report["rejected"]) == (
        4,
        2,
        1,
        1,
    )


def test_finishing_twice_counts_once() -> None:
    telemetry = Telemetry(Clock())
    timer = telemetry.begin("a@1", None, 1000.0)
    timer.finish("error")
    timer.finish("ok")
    report = telemetry.report()["adapters"]["a@1"]
    assert (report["requests"], report["errors"]) == (1, 1)


def test_a_window_forgets_what_lies_before_it_and_the_total_does_not() -> None:
    clock = Clock()
    telemetry = Telemetry(clock)
    answer(telemetry, clock, "a@1", 0.5, None)
    clock.now += 120
    answer(telemetry, clock, "a@1", 0.1, None)
    assert telemetry.report(60)["adapters"]["a@1"]["requests"] == 1
    assert telemetry.report(60)["adapters"]["a@1"]["ttft_ms"]["p99"] == pytest.approx(100, rel=0.01)
    assert telemetry.report(300)["adapters"]["a@1"]["requests"] == 2
    assert telemetry.report()["adapters"]["a@1"]["requests"] == 2


def test_a_quarter_of_an_hour_takes_little_memory() -> None:
    clock = Clock()
    source, num_adapters = random.Random(0), 20
    tracemalloc.start()
    try:
        telemetry = Telemetry(clock)
        empty = tracemalloc.get_traced_memory()[0]
        for _ in range(NUM_SLOTS):
            for adapter in range(num_adapters):
                timer = telemetry.begin(f"a@{adapter}", None, clock.now)
                for _ in range(40):
                    clock.now += source.lognormvariate(-5, 1)
                    timer.tokens(1)
                timer.finish("ok")
            clock.now = SLOT_S * (clock.now // SLOT_S + 1)
        used = tracemalloc.get_traced_memory()[0] - empty
    finally:
        tracemalloc.stop()
    assert used / (NUM_SLOTS * num_adapters) < 2000  # bytes per adapter and slot


def test_adapters_that_are_asked_no_more_take_little_memory() -> None:
    clock = Clock()
    source, num_adapters = random.Random(0), 100
    telemetry = Telemetry(clock)
    tracemalloc.start()
    try:
        for adapter in range(num_adapters):
            for _ in range(6):
                timer = telemetry.begin(f"a@{adapter}", None, clock.now)
                for _ in range(200):
                    clock.now += source.lognormvariate(-5, 1)
                    timer.tokens(1)
                timer.finish("ok")
                clock.now = SLOT_S * (clock.now // SLOT_S + 1)
        used = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert telemetry.report()["adapters"]["a@0"]["completion_tokens"] == 1200
    assert "a@99" in telemetry.report(60)["adapters"]
    assert used / num_adapters < 10_000


def test_looking_at_idle_adapters_takes_no_memory() -> None:
    clock = Clock()
    telemetry = Telemetry(clock)
    for adapter in range(50):
        answer(telemetry, clock, f"a@{adapter}", 0.1, "e/a")

    def traced() -> int:
        """Bytes of ours: servers of other tests may live in other threads."""
        ours = tracemalloc.Filter(True, "*/server/reporting/*")
        snapshot = tracemalloc.take_snapshot().filter_traces([ours])
        return sum(trace.size for trace in snapshot.traces)

    tracemalloc.start()
    try:
        telemetry.report()
        before = traced()
        for _ in range(NUM_SLOTS):
            clock.now += SLOT_S
            telemetry.report()
            telemetry.report(60)
        assert traced() - before < 10_000
    finally:
        tracemalloc.stop()


def test_a_long_answer_is_busy_in_every_slot_it_ran_in() -> None:
    clock = Clock()
    telemetry = Telemetry(clock)
    timer = telemetry.begin("a@1", None, clock.now)
    for _ in range(100):
        clock.now += 1
        timer.tokens(10)
    assert telemetry.report(30)["adapters"]["a@1"]["tokens_per_s"] == pytest.approx(10, rel=0.05)
    assert telemetry.report()["adapters"]["a@1"]["tokens_per_s"] == pytest.approx(10, rel=0.01)


def test_concurrent_requests_share_their_busy_time() -> None:
    clock = Clock()
    telemetry = Telemetry(clock)
    timers = [telemetry.begin("a@1", None, clock.now) for _ in range(4)]
    clock.now += 2
    for timer in timers:
        timer.tokens(10)
        timer.finish("ok")
    assert telemetry.report()["adapters"]["a@1"]["tokens_per_s"] == pytest.approx(20)


def test_the_number_of_series_is_bounded_and_nothing_is_lost() -> None:
    clock = Clock()
    telemetry = Telemetry(clock, max_series=10)
    for i in range(50):
        answer(telemetry, clock, f"a@{i}", 0.1, None)
    adapters = telemetry.report()["adapters"]
    assert len(adapters) <= 11
    assert sum(report["requests"] for report in adapters.values()) == 50
    assert adapters[OTHER]["requests"] >= 39


def test_reset_keeps_running_requests() -> None:
    clock = Clock()
    telemetry = Telemetry(clock)
    answer(telemetry, clock, "old@1", 0.1, None)
    timer = telemetry.begin("a@1", None, clock.now)
    telemetry.reset()
    timer.tokens(1)
    timer.finish("ok")
    report = telemetry.report()["adapters"]
    assert set(report) == {"a@1"}
    assert report["a@1"]["requests"] == 1
