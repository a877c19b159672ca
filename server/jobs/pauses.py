"""Running training children stand aside while the chats need the machine, and it is counted.

``server.jobs.pause_rule`` says when. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from typing import Any

from server.jobs.pause_rule import Change, PauseLimits, PauseRule
from server.jobs.run import JobRun

log = logging.getLogger("loraloop.server")

LOOK_S = 0.25

# The P90 of recent first tokens in seconds, None if nobody chats. Its argument: whoever still waits
# counts from that many seconds on.
FirstTokenP90 = Callable[[float], float | None]


class Pauses:
    """Freezes and thaws all running jobs together."""

    def __init__(
        self,
        limits: PauseLimits,
        p90_s: FirstTokenP90,
        runs: Callable[[], Collection[JobRun]],
    ) -> None:
        self._limits = limits
        self._p90_s = p90_s
        self._runs = runs
        self._decided: Change | None = None  # last
        self._num_pauses = 0
        self._paused_s = 0.0
        self._looked_at = 0.0

    def report(self) -> dict[str, Any]:
        """For statistics. ``paused_s``: how long jobs have stood still since the server's start."""
        return {
            "is_paused": self._is_any_frozen(),
            "pauses": self._num_pauses,
            "paused_s": round(self._paused_s, 2),
        }

    async def watch(self) -> None:
        """Until cancelled. Without a target nothing ever pauses."""
        target_s = self._limits.target_s
        if target_s is None:
            return
        rule = PauseRule(target_s, self._limits.after_s, self._limits.longest_s)
        self._looked_at = time.monotonic()
        while True:
            try:
                await self._look(rule, target_s)
            except Exception:  # the next look decides anew; a mistake of ours must not end that
                log.exception("the pauses of training could not be settled")
            await asyncio.sleep(LOOK_S)

    async def _look(self, rule: PauseRule, target_s: float) -> None:
        now = time.monotonic()
        if self._is_any_frozen():
            self._paused_s += now - self._looked_at
        self._looked_at = now
        runs = list(self._runs())
        if not runs:
            rule.forget()
            self._decided = None
            return
        change = rule.look(self._p90_s(target_s), now)
        if change is not None:
            log.info("%s", change.reason)
            self._decided = change
            self._num_pauses += change.pauses
        if self._decided is None:
            return
        for run in runs:  # a job that has just begun, too, and one that failed to follow before
            if run.is_frozen != self._decided.pauses:
                await run.follow_traffic(self._decided)

    def _is_any_frozen(self) -> bool:
        return any(run.is_frozen for run in self._runs())
