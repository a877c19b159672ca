"""What a run was forecast to take and what it took: the two figures that stand side by side."""

from __future__ import annotations

import time
from typing import Any

from training.watch.forecast import Forecast
from training.watch.memory import MemoryMark


class Account:
    """Begins after the imports and before the base is loaded."""

    def __init__(self) -> None:
        self.mark = MemoryMark()
        self._began = 0.0
        self._forecast: Forecast | None = None
        self._trained: dict[str, Any] = {}

    def begin(self, forecast: Forecast) -> None:
        """The first step is next."""
        self._forecast = forecast
        self._began = time.monotonic()

    def end(self) -> None:
        """The last step is done; the gate's own needs are not the run's."""
        assert self._forecast is not None
        self._trained = {
            "peak_bytes": self.mark.peak(),
            "forecast_peak_bytes": self._forecast.peak_bytes,
            "seconds": round(time.monotonic() - self._began, 2),
            "forecast_seconds": round(self._forecast.seconds, 2),
        }

    @property
    def usage(self) -> dict[str, Any]:
        """Bytes above the process before it loaded the base, and seconds of training."""
        return self._trained
