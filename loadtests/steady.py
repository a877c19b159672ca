"""Chat traffic that stays the same for a while: closed loops of streams, or arrivals at a rate.

Knows no training. Times to the first token are the client's, in milliseconds.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from loadtests.client import Endpoint, Recording, parse, record
from loadtests.measure import Load, Target

JSON = dict[str, Any]
MAX_OPEN = 64  # requests under way at once when arrivals do not wait for answers


@dataclass(frozen=True)
class Traffic:
    """``num_streams`` clients that ask again as soon as they are answered (closed), or, with a
    ``rate``, requests per second that arrive at random whatever the server does (open)."""

    num_streams: int
    rate: float | None
    num_prompt: int
    num_new: int

    @property
    def title(self) -> str:
        kind = f"{self.num_streams} streams" if self.rate is None else f"{self.rate:g} requests/s"
        return f"{kind}, {self.num_prompt} + {self.num_new} tokens"


@dataclass(frozen=True)
class Heard:
    """What the clients of one span saw."""

    ttft_ms: tuple[float, ...]
    num_tokens: int
    seconds: float

    def percentile(self, q: float) -> float:
        """Nearest rank."""
        ordered = sorted(self.ttft_ms)
        return ordered[max(0, -int(-q * len(ordered) // 1) - 1)]

    def summary(self) -> JSON:
        return {
            "requests": len(self.ttft_ms),
            "ttft_p50_ms": round(statistics.median(self.ttft_ms), 1),
            "ttft_p90_ms": round(self.percentile(0.9), 1),
            "ttft_p99_ms": round(self.percentile(0.99), 1),
            "tokens_per_s": round(self.num_tokens / self.seconds, 1),
        }


def hear(target: Target, traffic: Traffic, seconds: float, seed: int) -> Heard:
    """Keep the traffic up for ``seconds``.

    A failure raises BadAnswer, BrokenStream or OSError.
    """
    load = Load("steady", traffic.title, 1, traffic.num_prompt, traffic.num_new)
    # Made beforehand: the client must not compute while it clocks.
    num_bodies = int(seconds * (traffic.rate or 50 * traffic.num_streams)) + MAX_OPEN
    bodies = [target.body(load) for _ in range(num_bodies)]
    began = time.perf_counter()
    if traffic.rate is None:
        recordings = _closed(target.endpoint, bodies, traffic.num_streams, began + seconds)
    else:
        arrivals = _arrivals(traffic.rate, seconds, random.Random(seed))
        recordings = _open(target.endpoint, bodies, [began + at for at in arrivals])
    took = time.perf_counter() - began
    answers = [parse(recording) for recording in recordings]
    ttfts = tuple(a.ttft_s * 1e3 for a in answers if a.ttft_s is not None)
    return Heard(ttfts, sum(a.num_tokens for a in answers), took)


def _closed(
    endpoint: Endpoint, bodies: Sequence[JSON], num_streams: int, until: float
) -> list[Recording]:
    ask, unused = _asker(endpoint), iter(bodies)

    def stream(_: int) -> list[Recording]:
        heard = []
        while time.perf_counter() < until:
            heard.append(ask(next(unused)))
        return heard

    with ThreadPoolExecutor(num_streams) as pool:
        return [one for heard in pool.map(stream, range(num_streams)) for one in heard]


def _open(endpoint: Endpoint, bodies: Sequence[JSON], arrivals: Sequence[float]) -> list[Recording]:
    ask = _asker(endpoint)
    with ThreadPoolExecutor(MAX_OPEN) as pool:
        asked = []
        for body, at in zip(bodies, arrivals, strict=False):
            time.sleep(max(0.0, at - time.perf_counter()))
            asked.append(pool.submit(ask, body))
        return [one.result() for one in asked]


def _arrivals(rate: float, seconds: float, source: random.Random) -> list[float]:
    """Moments of a Poisson process."""
    at, moments = source.expovariate(rate), list[float]()
    while at < seconds:
        moments.append(at)
        at += source.expovariate(rate)
    return moments


def _asker(endpoint: Endpoint) -> Callable[[JSON], Recording]:
    def ask(body: JSON) -> Recording:
        connection = endpoint.connect()
        try:
            return record(connection, endpoint, body)
        finally:
            connection.close()

    return ask
