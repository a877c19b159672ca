"""How long people waited for their first token a moment ago, those who still wait included.

This is what training beside the chats is steered by, so it forgets quickly and it notices a server
that answers nobody. Knows no adapter and no training. All calls come from the event loop.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from server.reporting.sketch import DurationSketch

WINDOW_S = 30.0
SLOT_S = 1.0


class FirstTokens:
    """Waits of the last ``WINDOW_S`` seconds, to one second; memory does not grow with traffic."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._slots: deque[tuple[int, DurationSketch]] = deque()
        self._waiting: dict[object, float] = {}  # request → when it was received

    def began(self, request: object, received_at: float) -> None:
        """A request has been accepted; ``received_at`` is of this clock."""
        self._waiting[request] = received_at

    def came(self, request: object) -> None:
        """Its first token has."""
        received_at = self._waiting.pop(request, None)
        if received_at is None:
            return
        now = self._clock()
        slot = int(now / SLOT_S)
        if not self._slots or self._slots[-1][0] != slot:
            self._forget(now)
            self._slots.append((slot, DurationSketch()))
        self._slots[-1][1].add(now - received_at)

    def ended(self, request: object) -> None:
        """It ended; without a token, it waits no longer and counts no more."""
        self._waiting.pop(request, None)

    def p90_s(self, patience_s: float) -> float | None:
        """The P90 in seconds, to 1 %; None if nobody waited.

        Who still waits counts with the time so far once that exceeds ``patience_s``: a server that
        stands still would look fast by the tokens it sent before.
        """
        now = self._clock()
        self._forget(now)
        waits = DurationSketch()
        for _, sketch in self._slots:
            waits.merge(sketch)
        for received_at in self._waiting.values():
            if now - received_at > patience_s:
                waits.add(now - received_at)
        return waits.percentile(0.9)

    def _forget(self, now: float) -> None:
        oldest = int((now - WINDOW_S) / SLOT_S)
        while self._slots and self._slots[0][0] <= oldest:
            self._slots.popleft()
