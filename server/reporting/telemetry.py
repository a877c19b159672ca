"""How fast and how well each adapter version and each experiment arm answers. No HTTP, no torch.

TTFT runs from the receipt of the request to its first token, empty text or not; ITL is the time
between tokens as they become available to be sent. Everything is kept twice: since start (or the
last reset), and in slots of ten seconds for sliding windows of up to 15 minutes. Percentiles are
right to 1 % (``reporting.sketch``). At most MAX_SERIES adapters and arms are told apart; the ones
unused for longest are added to OTHER.

All calls come from the event loop.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from server.engine.request import Timing
from server.reporting.first_tokens import FirstTokens
from server.reporting.sketch import DurationSketch

SLOT_S = 10.0
NUM_SLOTS = 90
MAX_WINDOW_S = SLOT_S * NUM_SLOTS
MAX_SERIES = 512
OTHER = "(other)"

Outcome = Literal["ok", "error", "aborted", "dropped", "timed_out"]
Clock = Callable[[], float]


@dataclass(slots=True)
class Tally:
    """What happened in one span of time."""

    requests: int = 0
    errors: int = 0
    aborted: int = 0  # the client left
    dropped: int = 0  # the client stayed but did not read
    timed_out: int = 0  # not finished by its deadline
    rejected: int = 0  # refused for overload before acceptance; not among the requests
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    busy_s: float = 0.0  # time with at least one running request
    ttft: DurationSketch = field(default_factory=DurationSketch)
    itl: DurationSketch = field(default_factory=DurationSketch)
    queue: DurationSketch = field(default_factory=DurationSketch)
    e2e: DurationSketch = field(default_factory=DurationSketch)

    def merge(self, other: Tally) -> None:
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in SKETCHES:
            getattr(self, name).merge(getattr(other, name))

    def end(self, outcome: Outcome) -> None:
        """Count one request."""
        self.requests += 1
        self.errors += outcome == "error"
        self.aborted += outcome == "aborted"
        self.dropped += outcome == "dropped"
        self.timed_out += outcome == "timed_out"

    def pack(self) -> None:
        """Nothing more happens in this span of time."""
        for name in SKETCHES:
            getattr(self, name).pack()

    def report(self) -> dict[str, Any]:
        """The body that ``/admin/stats`` shows for one adapter or arm."""
        rate = self.generated_tokens / self.busy_s if self.busy_s > 0 else None
        return {
            "requests": self.requests,
            "errors": self.errors,
            "aborted": self.aborted,
            "dropped": self.dropped,
            "timed_out": self.timed_out,
            "rejected": self.rejected,
            "ttft_ms": _percentiles_ms(self.ttft),
            "itl_ms": _percentiles_ms(self.itl),
            "queue_ms": _percentiles_ms(self.queue),
            "e2e_ms": _percentiles_ms(self.e2e),
            "tokens_per_s": None if rate is None else round(rate, 2),
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "completion_tokens": self.generated_tokens,
        }


SKETCHES = ("ttft", "itl", "queue", "e2e")
_COUNTS = tuple(name for name in Tally.__slots__ if name not in SKETCHES)


def _percentiles_ms(sketch: DurationSketch) -> dict[str, float | None]:
    values = {"p50": sketch.percentile(0.5), "p90": sketch.percentile(0.9)}
    values["p99"] = sketch.percentile(0.99)
    return {key: None if v is None else round(v * 1000, 3) for key, v in values.items()}


class Series:
    """The tallies of one adapter version or arm."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.since_start = Tally()
        self._slots: deque[tuple[int, Tally]] = deque(maxlen=NUM_SLOTS)
        self.num_running = 0
        self._busy_from = 0.0

    def tallies(self) -> tuple[Tally, Tally]:
        """The two tallies that something happening now counts in."""
        slot = int(self._clock() / SLOT_S)
        if not self._slots or self._slots[-1][0] != slot:
            if self._slots:
                self._book(self._slots[-1][1])
                self._slots[-1][1].pack()
            self._slots.append((slot, Tally()))
        return self.since_start, self._slots[-1][1]

    def window(self, seconds: float) -> Tally:
        """The last ``seconds``, rounded up to whole slots."""
        self.settle()
        oldest = int((self._clock() - seconds) / SLOT_S)
        total = Tally()
        for slot, tally in self._slots:
            if slot >= oldest:
                total.merge(tally)
        return total

    def rest(self) -> None:
        """Take less memory unless a request runs: forget what no window shows, pack the rest."""
        if self.num_running:
            return
        oldest = int((self._clock() - MAX_WINDOW_S) / SLOT_S)
        while self._slots and self._slots[0][0] < oldest:
            self._slots.popleft()
        for tally in (self.since_start, *(tally for _, tally in list(self._slots)[-1:])):
            tally.pack()

    def enter(self) -> None:
        if self.num_running == 0:
            self._busy_from = self._clock()
        self.num_running += 1

    def leave(self) -> None:
        self.settle()
        self.num_running -= 1

    def settle(self) -> None:
        """Book the busy time up to now. Who only looks makes no slot for an idle series."""
        if self.num_running:
            self._book(self.tallies()[1])

    def _book(self, current: Tally) -> None:
        # Also at every change of slot, so that a long answer counts in the slots it ran in.
        if self.num_running == 0:
            return
        now = self._clock()
        self.since_start.busy_s += now - self._busy_from
        current.busy_s += now - self._busy_from
        self._busy_from = now


class RequestTimer:
    """Follows one accepted request; ``finish`` counts it, exactly once."""

    def __init__(
        self, series: list[Series], clock: Clock, received_at: float, first_tokens: FirstTokens
    ) -> None:
        self._series = series
        self._clock = clock
        self._received_at = received_at
        self._first_tokens = first_tokens
        self._last_token_at: dict[int, float] = {}
        self._is_finished = False
        for one in series:
            one.enter()
        first_tokens.began(self, received_at)

    def tokens(self, count: int, choice: int = 0) -> None:
        """``count`` tokens of a choice have become available."""
        now = self._clock()
        last = self._last_token_at.get(choice)
        is_first = not self._last_token_at
        self._last_token_at[choice] = now
        if is_first:
            self._first_tokens.came(self)
        for series in self._series:
            for tally in series.tallies():
                tally.generated_tokens += count
                if is_first:
                    tally.ttft.add(now - self._received_at)
                elif last is not None:
                    tally.itl.add((now - last) / count, count)

    def timing(self, timing: Timing) -> None:
        """What the engine reports of one finished choice."""
        for series in self._series:
            for tally in series.tallies():
                tally.prompt_tokens += timing.num_prompt_tokens
                tally.cached_tokens += timing.num_cached_tokens
                tally.queue.add(timing.queue_s)

    def finish(self, outcome: Outcome) -> None:
        if self._is_finished:
            return
        self._is_finished = True
        self._first_tokens.ended(self)
        elapsed_s = self._clock() - self._received_at
        for series in self._series:
            series.leave()
            for tally in series.tallies():
                tally.end(outcome)
                if outcome == "ok":
                    tally.e2e.add(elapsed_s)


class Telemetry:
    """Series by adapter id (``name@3`` or ``base``) and by arm (``experiment/model id``)."""

    def __init__(self, clock: Clock = time.perf_counter, max_series: int = MAX_SERIES) -> None:
        self._clock = clock
        self._max_series = max_series
        self.first_tokens = FirstTokens(clock)  # a reset leaves it: it forgets by itself
        self._adapters: OrderedDict[str, Series] = OrderedDict()
        self._arms: OrderedDict[str, Series] = OrderedDict()

    def begin(self, adapter_id: str, arm_id: str | None, received_at: float) -> RequestTimer:
        """An accepted request. ``received_at`` is of this telemetry's clock."""
        series = self._pick(adapter_id, arm_id)
        return RequestTimer(series, self._clock, received_at, self.first_tokens)

    def rejected(self, adapter_id: str, arm_id: str | None) -> None:
        """A request refused for overload."""
        for series in self._pick(adapter_id, arm_id):
            for tally in series.tallies():
                tally.rejected += 1

    def failed(self, adapter_id: str, arm_id: str | None, outcome: Outcome = "error") -> None:
        """A request that we failed to begin: its adapter was not ready, or not in time."""
        for series in self._pick(adapter_id, arm_id):
            for tally in series.tallies():
                tally.end(outcome)

    def report(self, window_s: float | None = None) -> dict[str, Any]:
        """``{"adapters": {id: …}, "arms": {id: …}}`` over a window, or since start."""
        return {
            "adapters": {key: t.report() for key, t in _tallies(self._adapters, window_s)},
            "arms": {key: t.report() for key, t in _tallies(self._arms, window_s)},
        }

    def adapters(self) -> Iterator[tuple[str, Tally]]:
        """Since start, for Prometheus."""
        return _tallies(self._adapters, None)

    def reset(self) -> None:
        """Forget everything but the requests that still run."""
        for group in (self._adapters, self._arms):
            for key, series in list(group.items()):
                if series.num_running == 0:
                    del group[key]
                else:
                    series.settle()
                    series.since_start = Tally()
                    series._slots.clear()

    def _pick(self, adapter_id: str, arm_id: str | None) -> list[Series]:
        picked = [self._one(self._adapters, adapter_id)]
        if arm_id is not None:
            picked.append(self._one(self._arms, arm_id))
        return picked

    def _one(self, group: OrderedDict[str, Series], key: str) -> Series:
        series = group.get(key)
        if series is None:
            self._make_room(group)
            for other in group.values():  # new versions come as old ones are asked no more
                other.rest()
            series = group[key] = Series(self._clock)
        group.move_to_end(key)
        return series

    def _make_room(self, group: OrderedDict[str, Series]) -> None:
        if len(group) < self._max_series:
            return
        idle = (k for k, series in group.items() if series.num_running == 0 and k != OTHER)
        oldest = next(idle, None)
        if oldest is None:
            return  # all are running: their number is bounded by the engine's queue
        folded = group.pop(oldest)
        other = group.setdefault(OTHER, Series(self._clock))
        other.since_start.merge(folded.since_start)


def _tallies(
    group: OrderedDict[str, Series], window_s: float | None
) -> Iterator[tuple[str, Tally]]:
    for key, series in group.items():
        if window_s is None:
            series.settle()
            yield key, series.since_start
        else:
            yield key, series.window(window_s)
