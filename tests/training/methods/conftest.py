"""Runs of a second: what they draw and log is tested elsewhere."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """No loss plot: a quarter of the time of such a run."""
    monkeypatch.setattr("training.pipeline.plot_losses", lambda *_: None)


@pytest.fixture
def settings(settings: dict[str, Any]) -> dict[str, Any]:
    """The run of a few seconds, without a tracker."""
    return settings | {"trackers": []}
