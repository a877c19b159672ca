"""What an answer must be: which version an id may mean at a time, and what that version says.

Ids that move (aliases, experiments) mean one thing before the change is sent and another after it
is acknowledged; in between both are right. A version's answer to the same greedy or seeded request
is the same whenever it is asked, whoever else is being answered.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

JSON = dict[str, Any]
GONE = "(nothing)"  # what a deleted alias means
# Fields that change how an answer is sent, not what it says.
DELIVERY = ("model", "stream", "stream_options", "user", "n", "metadata")


@dataclass
class _Span:
    versions: frozenset[str]
    from_s: float
    until_s: float = math.inf


class Meaning:
    """The versions that one id may mean, over time."""

    def __init__(self, versions: Iterable[str], now: float) -> None:
        self._spans = [_Span(frozenset(versions), now)]

    def sending(self, versions: Iterable[str], now: float) -> None:
        """A change is being sent: from now on both are right."""
        self._spans.append(_Span(frozenset(versions), now))

    def acknowledged(self, now: float) -> None:
        """The change holds: what is asked from now on means the new versions only."""
        for span in self._spans[:-1]:
            span.until_s = min(span.until_s, now)

    def refused(self) -> None:
        """The change was not made."""
        del self._spans[-1]

    @property
    def now(self) -> frozenset[str]:
        """What it means after the last change that was sent."""
        return self._spans[-1].versions

    def between(self, sent_s: float, answered_s: float) -> frozenset[str]:
        """All that was right at some moment of a request's time."""
        parts = [s.versions for s in self._spans if s.from_s <= answered_s and s.until_s >= sent_s]
        return frozenset().union(*parts)

    def is_steady(self, sent_s: float, answered_s: float) -> bool:
        """Whether it meant one thing all the time."""
        met = [s for s in self._spans if s.from_s <= answered_s and s.until_s >= sent_s]
        return len(met) == 1


@dataclass
class Sayings:
    """The first answer to each deterministic question, to hold every later one against."""

    is_exact: bool  # the kernels give the same bits in every batch: seeded draws repeat as well
    texts: dict[str, str] = field(default_factory=dict)
    fingerprints: dict[str, str] = field(default_factory=dict)
    num_compared: int = 0

    def differing(self, version: str, path: str, body: JSON, texts: list[str]) -> str | None:
        """Why ``texts`` cannot be ``version``'s answer to ``body``; None if they can."""
        for index, text in enumerate(texts):
            key = self.key(version, path, body, index)
            if key is None:
                return None
            first = self.texts.setdefault(key, text)
            self.num_compared += first is not text
            if first != text:
                return f"choice {index} of {version} says {text!r}, before it said {first!r}"
        return None

    def other_fingerprint(self, version: str, fingerprint: str) -> str | None:
        """Why this fingerprint cannot be ``version``'s; None if it can."""
        first = self.fingerprints.setdefault(version, fingerprint)
        return None if first == fingerprint else f"{version} was {first}, now it is {fingerprint}"

    def key(self, version: str, path: str, body: JSON, index: int) -> str | None:
        """What determines the text of one choice; None where chance does."""
        is_greedy = body.get("temperature") == 0
        if not is_greedy and (body.get("seed") is None or not self.is_exact):
            return None
        asked = {name: value for name, value in body.items() if name not in DELIVERY}
        place = 0 if is_greedy else index  # all choices of a greedy request are the same
        return json.dumps([version, path, place, asked], sort_keys=True, ensure_ascii=False)


@dataclass
class Stickiness:
    """A user of an experiment meets one arm as long as nobody changes the experiment."""

    arms: dict[str, str] = field(default_factory=dict)

    def moved(self, user: str, arm: str) -> str | None:
        """Why ``user`` cannot meet ``arm``; None if they can."""
        first = self.arms.setdefault(user, arm)
        return None if first == arm else f"user {user} met {first}, now {arm}"

    def forget(self) -> None:
        """The experiment is changing."""
        self.arms.clear()
