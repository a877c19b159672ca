"""How busy the cores and the GPU are, for the progress lines."""

from __future__ import annotations

import contextlib

import psutil
import torch


class Usage:
    """Percentages since the last call; one core that is always busy counts 100."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._process.cpu_percent()  # the first call only sets the mark

    def read(self) -> dict[str, float]:
        """``cpu_percent``, and ``gpu_percent`` where NVIDIA's library tells it."""
        usage = {"cpu_percent": self._process.cpu_percent()}
        if torch.cuda.is_available():
            with contextlib.suppress(ModuleNotFoundError, RuntimeError):  # no pynvml, no driver's
                usage["gpu_percent"] = float(torch.cuda.utilization())
        return usage
