"""What a child says about its run, in the job's events."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from server.jobs.remarks import remark_on
from training.watch.doctor import Doctor
from training.watch.forecast import Forecast


def test_a_diagnosis_of_the_real_doctor_is_a_warning_with_cause_and_remedy() -> None:
    doctor = Doctor()
    doctor.history.add_step(float("nan"), None)
    (diagnosis,) = doctor.look()
    remark = remark_on({"event": "diagnosis", "step": 7, **asdict(diagnosis)})
    assert remark is not None
    assert remark.level == "warn"
    assert remark.message.startswith("Step 7: not a number: the loss became nan")
    assert "Cause: the learning rate is too high" in remark.message
    assert "Remedy: halve learning_rate" in remark.message


def test_the_real_forecast_is_told_with_its_figures() -> None:
    event = Forecast(10_000, 1_000_000, 4, 4, 8, 2**20, 300 * 2**20, 61.2).as_event()
    remark = remark_on(event)
    assert remark is not None
    wanted = "Forecast: 10,000 trainable parameters (1.00%), peak memory 300 MiB, 61 s"
    assert (remark.level, remark.message) == ("info", wanted)
    assert remark.data["activation_bytes"] == 2**20


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (
            {"event": "remedy", "symptom": "out_of_memory", "changes": {"batch_size": 4}},
            "Out of memory: the run goes on with batch_size=4",
        ),
        (
            {"event": "used", "peak_bytes": 2**21, "forecast_peak_bytes": 2**22,
             "seconds": 3.2, "forecast_seconds": 4.4},
            "Peak memory 2 MiB (forecast 4 MiB), 3 s (forecast 4 s)",
        ),
        (
            {"event": "data_checked", "num_rows": 9, "num_tokens": 99, "num_duplicates": 2,
             "num_bad": 0},
            "Data checked: 9 rows; 2 duplicates",
        ),
    ],
)  # fmt: skip
def test_other_remarks(event: dict[str, Any], message: str) -> None:
    remark = remark_on(event)
    assert remark is not None
    assert remark.message == message


@pytest.mark.parametrize("event", [{}, {"event": "publishing"}, {"event": "diagnosis"}])
def test_what_says_nothing_is_passed_over(event: dict[str, Any]) -> None:
    assert remark_on(event) is None
