"""How much memory this process takes, and how much it took at most. Bytes."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import psutil
import torch
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile


class MemoryMark:
    """A moment to measure from: what the process took beyond it, at most and so far.

    On a GPU what counts is torch's own peak there; on a CPU the resident set, whose peak Linux
    keeps (``VmHWM``). Elsewhere the present size stands in for the peak.
    """

    def __init__(self) -> None:
        self._baseline = psutil.Process().memory_info().rss
        self._earlier = 0  # the peak before the last ``begin_peak``
        self.begin_peak()

    def begin_peak(self) -> None:
        """Lets ``recent_peak`` count from here; ``peak`` still covers everything since the mark."""
        self._earlier = max(self._earlier, self.recent_peak())
        with contextlib.suppress(OSError):  # not on every kernel: then the peak since the start
            Path("/proc/self/clear_refs").write_text("5")
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> int:
        """The largest rise since this mark."""
        return max(self._earlier, self.recent_peak())

    def recent_peak(self) -> int:
        """The largest rise since the last ``begin_peak``."""
        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated()
        return max(0, _high_water() - self._baseline)


def peak_of(work: Callable[[], None]) -> int:
    """The most bytes that tensors made by ``work`` took at once, by torch's own record."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        work()
    taken = sorted(_allocations(record.profiler.kineto_results.experimental_event_tree()))
    return max(accumulate(size for _, size in taken), default=0)


def _allocations(events: list[Any]) -> Iterator[tuple[int, int]]:
    """(nanosecond, bytes) of every allocation; bytes are negative where memory is given back."""
    for event in events:
        if event.tag == _EventType.Allocation:
            yield event.start_time_ns, event.extra_fields.alloc_size
        yield from _allocations(event.children)


def _high_water() -> int:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return psutil.Process().memory_info().rss
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else psutil.Process().memory_info().rss
