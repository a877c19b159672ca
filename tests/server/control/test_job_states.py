"""What a finished child means, case by case."""

from __future__ import annotations

from typing import Any

import pytest

from server.jobs.states import Evidence, decide, reported_error

PUBLISHED = {"event": "published", "adapter": "shop@1"}
FAILED = {"event": "failed", "code": "gate", "message": "no better than the base"}
INTERRUPTED = {"event": "interrupted", "step": 7}


def seen(*events: dict[str, Any]) -> Evidence:
    evidence = Evidence()
    for event in events:
        evidence.add(event)
    return evidence


@pytest.mark.parametrize(
    ("events", "exit_code", "stopping", "status"),
    [
        ([PUBLISHED], 0, None, "publish"),
        ([PUBLISHED], -11, None, "publish"),  # crashed on its way out, after the fact
        ([PUBLISHED], 0, "pause", "publish"),  # was done before it noticed
        ([PUBLISHED], 0, "shutdown", "publish"),
        ([PUBLISHED], 0, "cancel", "cancelled"),
        ([FAILED], 1, None, "failed"),
        ([FAILED], 1, "pause", "failed"),
        ([FAILED], 1, "cancel", "cancelled"),
        ([INTERRUPTED], 3, "pause", "paused"),
        ([INTERRUPTED], 3, "shutdown", "interrupted"),
        ([INTERRUPTED], 3, "cancel", "cancelled"),
        ([INTERRUPTED], 3, None, "interrupted"),  # somebody else sent it a SIGTERM
        ([], -9, "pause", "paused"),  # did not stop in time: its last checkpoint counts
        ([], -9, "shutdown", "interrupted"),
        ([], None, "shutdown", "interrupted"),
        ([], -9, None, "failed"),
        ([], 0, None, "failed"),
        ([], 1, None, "failed"),
        ([PUBLISHED, {"event": "run"}], -9, None, "failed"),  # of an earlier run in this file
    ],
)
def test_outcomes(
    events: list[dict[str, Any]], exit_code: int | None, stopping: str | None, status: str
) -> None:
    outcome = decide(seen(*events), exit_code, stopping, "the last words")
    assert outcome.status == status
    assert (outcome.error is not None) == (status == "failed")


def test_a_killed_child_is_told_with_its_last_words() -> None:
    error = decide(seen(), -9, None, "Traceback\nMemoryError").error
    assert error is not None
    assert error.code == "killed"
    assert "signal 9 (SIGKILL)" in error.message
    assert "memory" in error.message
    assert "MemoryError" in error.message


def test_a_silent_success_is_a_failure() -> None:
    error = decide(seen(), 0, None, "").error
    assert error is not None
    assert "without publishing" in error.message


def test_bad_rows_are_named_and_bounded() -> None:
    rows = [{"file": "a.jsonl", "line": n, "reason": "no messages"} for n in range(1, 31)]
    error = reported_error(
        {"event": "failed", "code": "invalid_data", "message": "30 bad rows", "rows": rows}
    )
    assert (error.code, error.param) == ("invalid_training_file", "training_file")
    assert "a.jsonl:3: no messages" in error.message
    assert "a.jsonl:21:" not in error.message
    assert "and 10 more" in error.message


@pytest.mark.parametrize("rows", [None, "many", [None], [{"line": 3}]])
def test_odd_failed_events_are_survived(rows: Any) -> None:
    assert reported_error({"event": "failed", "rows": rows}).code == "internal"


def test_a_setting_that_cannot_be_run_is_the_errors_param() -> None:
    event = {"event": "failed", "code": "invalid_config", "message": "no", "param": "rank"}
    assert reported_error(event).param == "loraloop.rank"
    assert reported_error({**event, "param": None}).param is None
    assert reported_error({**event, "code": "gate"}).param is None
