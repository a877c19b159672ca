"""Memory of this process: now, and the peak since start or the last reset. Knows no engine.

The peak is the kernel's own high-water mark (VmHWM), so nothing between two looks is missed.
Writing 5 to /proc/self/clear_refs resets it; where that is forbidden, the peak of the looks
stands in.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import Any

import psutil

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


class MemoryMeter:
    """Resident memory and, on CUDA, torch's own peak."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._seen_peak: int | None = None  # set once the kernel's mark could not be reset

    def rss_bytes(self) -> int:
        return int(self._process.memory_info().rss)

    def rss_peak_bytes(self) -> int:
        """At least the largest resident size since start or reset."""
        rss = self.rss_bytes()
        if self._seen_peak is not None:
            self._seen_peak = max(self._seen_peak, rss)
            return self._seen_peak
        return max(_high_water_mark(), rss)

    def torch_peak_bytes(self) -> int | None:
        """Peak of torch's CUDA allocator; None without CUDA: torch counts nothing on CPU."""
        cuda = _cuda()
        return None if cuda is None else int(cuda.max_memory_allocated())

    def reset(self) -> None:
        """Start both peaks anew from the current use."""
        try:
            _CLEAR_REFS.write_text("5")
        except OSError:
            self._seen_peak = self.rss_bytes()
        if (cuda := _cuda()) is not None:
            cuda.reset_peak_memory_stats()


def _high_water_mark() -> int:
    try:
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def _cuda() -> Any | None:
    """torch.cuda if the engine has loaded torch and uses a device; never the one to import it."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return None
    return torch.cuda
