"""When training stands aside for the chats, and when it may go on. Knows no process and no job.

Training pauses once the P90 of the first tokens has been over the target for a while. It goes on
when that P90 is well under the target again (or nobody chats), and at the latest after the longest
pause, so that it cannot starve: then it has at least the same while until the next pause.
"""

from __future__ import annotations

from dataclasses import dataclass

CALM = 0.9  # of the target: a P90 that only just fits would be over it again at once


@dataclass(frozen=True, slots=True)
class PauseLimits:
    """What the operator asked for. Without a target training never pauses."""

    target_s: float | None = None
    after_s: float = 2.0
    longest_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Change:
    """Training is to pause or to go on now; ``reason`` is for people, ``facts`` for programs."""

    pauses: bool
    reason: str
    facts: dict[str, float | None]


class PauseRule:
    """Told the P90 again and again, says what is to change. Times are seconds of any one clock."""

    def __init__(self, target_s: float, after_s: float, longest_s: float) -> None:
        self._target_s = target_s
        self._after_s = after_s
        self._longest_s = longest_s
        self._over_since: float | None = None
        self._paused_at: float | None = None

    def forget(self) -> None:
        """No job is there to be paused."""
        self._over_since = self._paused_at = None

    def look(self, p90_s: float | None, now: float) -> Change | None:
        """What is to change at ``now``; ``p90_s`` is None while nobody chats."""
        if self._paused_at is None:
            return self._while_running(p90_s, now)
        return self._while_paused(p90_s, now, self._paused_at)

    def _while_running(self, p90_s: float | None, now: float) -> Change | None:
        if p90_s is None or p90_s <= self._target_s:
            self._over_since = None
            return None
        if self._over_since is None:
            self._over_since = now
        if now - self._over_since < self._after_s:
            return None
        over_s, self._over_since, self._paused_at = now - self._over_since, None, now
        return Change(
            True,
            f"Training stands aside: the P90 of first tokens is {_ms(p90_s)}, and has been over "
            f"the target of {_ms(self._target_s)} for {over_s:.1f} s",
            self._facts(p90_s, over_s=over_s),
        )

    def _while_paused(self, p90_s: float | None, now: float, paused_at: float) -> Change | None:
        paused_s = now - paused_at
        if p90_s is None:
            why = "nobody chats"
        elif p90_s <= CALM * self._target_s:
            why = f"the P90 of first tokens is {_ms(p90_s)}, the target {_ms(self._target_s)}"
        elif paused_s >= self._longest_s:
            why = (
                f"it may stand aside for {self._longest_s:g} s at a time; the P90 of first tokens "
                f"is still {_ms(p90_s)}, the target {_ms(self._target_s)}"
            )
        else:
            return None
        self._paused_at = None
        reason = f"Training goes on after {paused_s:.1f} s: {why}"
        return Change(False, reason, self._facts(p90_s, paused_s=paused_s))

    def _facts(self, p90_s: float | None, **durations: float) -> dict[str, float | None]:
        p90_ms = None if p90_s is None else round(p90_s * 1000, 1)
        rounded = {key: round(value, 2) for key, value in durations.items()}
        return {"ttft_p90_ms": p90_ms, "target_ms": self._target_s * 1000, **rounded}


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"
