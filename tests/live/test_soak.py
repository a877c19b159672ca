"""The soak against a real server, shortened: everything at once, and no request is lost.

SOAK_S sets how long it drives; `make soak` runs twenty minutes of the same.
"""

from __future__ import annotations

import os

import pytest

from loadtests.soak.__main__ import failed, run
from loadtests.soak.run import Plan

SECONDS = float(os.environ.get("SOAK_S", "45"))


@pytest.mark.timeout(SECONDS + 180)
def test_no_request_is_lost_while_everything_happens_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LORALOOP_TRAINING_NICENESS", "0")  # idle: after what other tests compute
    report = run(None, Plan(SECONDS, line_every_s=max(10.0, SECONDS / 20)), seed=1, say=print)
    print(report["kinds"])
    assert not report["lost"]
    assert not failed(report)
