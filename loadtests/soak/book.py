"""The soak's own account of every request: each ends exactly once, and the lost ones are kept.

Knows no HTTP. What the server counts is compared with this at the end (`loadtests.soak.checks`).
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

JSON = dict[str, Any]
MAX_RECORDS = 200  # of lost requests: enough to see the pattern


class Outcome(StrEnum):
    """How a request may end. LOST is the one that must not happen."""

    ANSWERED = "answered"
    REFUSED = "refused"
    LEFT = "left"
    LOST = "lost"


@dataclass(frozen=True)
class Lost:
    """A request that ended in no legal way, and all that is needed to send it again."""

    number: int
    at_s: float  # since the start of the soak, when it ended
    kind: str
    why: str
    request: JSON
    seen: JSON


@dataclass
class Minute:
    """What happened since the last line of progress."""

    requests: int = 0
    ttft_s: list[float] = field(default_factory=list)


class Book:
    """Opened with `begin`, closed with `end`; both of one request, exactly once."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._open: dict[int, tuple[str, str]] = {}
        self.outcomes: Counter[Outcome] = Counter()
        self.kinds: Counter[tuple[str, Outcome]] = Counter()
        self.statuses: Counter[int] = Counter()  # of refusals
        self.answered: Counter[str] = Counter()  # completions, by the version that answered
        self.arms: Counter[str] = Counter()  # the same by experiment/arm
        self.overloads = 0  # 429 to a completion
        self.unsure: Counter[str] = Counter()  # completions that were left or lost, by model asked
        self.actions: Counter[tuple[str, str]] = Counter()  # (audit action, subject)
        self.lost: list[Lost] = []
        self.minute = Minute()
        self.ttft_s: list[float] = []

    @property
    def num_open(self) -> int:
        return len(self._open)

    @property
    def num_requests(self) -> int:
        return self.outcomes.total()

    def begin(self, kind: str, model: str = "") -> int:
        """A request is about to be sent; ``model`` for completions. Returns its number."""
        number = next(self._numbers)
        self._open[number] = (kind, model)
        return number

    def answer(self, number: int, version: str, arm: str | None) -> None:
        """A completion came whole."""
        self._end(number, Outcome.ANSWERED)
        self.answered[version] += 1
        if arm is not None:
            self.arms[arm] += 1

    def first_token(self, seconds: float) -> None:
        """Time to the first token of a stream that came whole."""
        self.ttft_s.append(seconds)
        self.minute.ttft_s.append(seconds)

    def done(self, number: int, action: tuple[str, str] | None) -> None:
        """Anything else was done; ``action`` is what the audit log must say of it."""
        self._end(number, Outcome.ANSWERED)
        if action is not None:
            self.actions[action] += 1

    def refuse(self, number: int, status: int) -> None:
        """A refusal that is legal for this request."""
        _, model = self._end(number, Outcome.REFUSED)
        self.statuses[status] += 1
        self.overloads += bool(model) and status == 429

    def leave(self, number: int) -> None:
        """We left it ourselves; the server may have counted it in any way, or not at all."""
        _, model = self._end(number, Outcome.LEFT)
        if model:
            self.unsure[model] += 1

    def lose(
        self, number: int, why: str, request: Mapping[str, Any], seen: JSON, at_s: float
    ) -> None:
        """Anything that is not legal."""
        kind, model = self._end(number, Outcome.LOST)
        if model:
            self.unsure[model] += 1
        if len(self.lost) < MAX_RECORDS:
            self.lost.append(Lost(number, at_s, kind, why, dict(request), seen))

    def turn_page(self) -> Minute:
        """What happened since the last call."""
        page, self.minute = self.minute, Minute()
        return page

    def report(self) -> JSON:
        """Everything counted, as JSON."""
        return {
            "requests": self.num_requests,
            "open": self.num_open,
            "outcomes": {str(key): n for key, n in self.outcomes.items()},
            "kinds": {f"{kind} {outcome}": n for (kind, outcome), n in sorted(self.kinds.items())},
            "refusals": {str(status): n for status, n in sorted(self.statuses.items())},
            "answered": dict(self.answered),
            "actions": dict(_per_action(self.actions)),
            "lost": [asdict(one) for one in self.lost],
        }

    def _end(self, number: int, outcome: Outcome) -> tuple[str, str]:
        kind, model = self._open.pop(number)  # KeyError: ended twice, a mistake of the soak itself
        self.outcomes[outcome] += 1
        self.kinds[kind, outcome] += 1
        self.minute.requests += 1
        return kind, model


def _per_action(actions: Counter[tuple[str, str]]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for (action, _), count in actions.items():
        counts[action] += count
    return counts
