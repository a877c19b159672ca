"""Hot load: how long until a new adapter can answer, and what running streams notice of it."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from artifacts.adapter import LoraWeights
from server.bench.figure import Figure, at_most, fixed
from server.bench.loads import RANK
from server.bench.run import Run
from server.bench.traffic import Client, Clocked, random_adapter

NUM_STREAMS = 8
PROMPT, NEW = 128, 96
WARM_TOKENS = 12  # of every stream, to learn the normal step from
LOADS_PER_ROUND = 2
FIRST_SEED = 1000  # adapters that no other row has loaded


@dataclass(frozen=True, slots=True)
class Noticed:
    """One hot load, and the longest gaps of running streams in normal steps."""

    load_s: float
    gap_steps: float
    first_use_steps: float


def longest_gap(streams: Sequence[Clocked], since: float, until: float) -> float:
    """The longest time between two tokens of one stream that overlaps ``since … until``.

    Raises ValueError if no stream had tokens on both sides of the interval's start.
    """
    gaps = [
        later - earlier
        for stream in streams
        for earlier, later in itertools.pairwise(stream.token_times)
        if later > since and earlier < until
    ]
    if not gaps:
        raise ValueError("no stream was running at the time")
    return max(gaps)


def normal_step(streams: Sequence[Clocked], until: float) -> float:
    """The median gap before ``until``, once every stream has its first token."""
    began = max(stream.token_times[0] for stream in streams)
    gaps = [
        later - earlier
        for stream in streams
        for earlier, later in itertools.pairwise(stream.token_times)
        if earlier >= began and later <= until
    ]
    return statistics.median(gaps)


async def hot_load(run: Run) -> list[Figure]:
    """Group ``hotload``: seconds for add and preload beside 8 streams, and their longest gap."""
    found: list[Noticed] = []
    async with run.setup.client() as client:
        for turn in run.rounds("hot loads", run.repeats):
            seeds = [FIRST_SEED + turn * LOADS_PER_ROUND + n for n in range(LOADS_PER_ROUND)]
            adapters = [random_adapter(run.setup.base, RANK, seed) for seed in seeds]
            streams = [Clocked() for _ in range(NUM_STREAMS)]
            running = [
                asyncio.create_task(client.ask(client.prompt(PROMPT), NEW, into=stream))
                for stream in streams
            ]
            for number, weights in enumerate(adapters):
                await _all_have(streams, WARM_TOKENS + number * NEW // 2)
                found.append(await _load_one(client, streams, weights))
            await asyncio.gather(*running)
    took = tuple(each.load_s for each in found)
    gaps = tuple(each.gap_steps for each in found)
    first_use = [each.first_use_steps for each in found]
    title = f"hot load of a rank-{RANK} adapter beside {NUM_STREAMS} streams"
    gap_title = "longest gap of a stream meanwhile, in normal steps"
    return [
        Figure("hotload", title, "s", took, None, at_most(0.3)),
        Figure(
            "hotload_gap", gap_title, "x step", gaps, fixed(1), at_most(2), {"first_use": first_use}
        ),
    ]


async def _load_one(client: Client, streams: Sequence[Clocked], weights: LoraWeights) -> Noticed:
    """Load, then let one short request use the adapter: a first use may cost, too."""
    since = time.perf_counter()
    step = normal_step(streams, since)
    key = await client.add(weights)
    until = time.perf_counter()
    await _next_token(streams)
    gap = longest_gap(streams, since, until)
    used = time.perf_counter()
    await client.ask(client.prompt(2), 2, key)
    await _next_token(streams)
    first_use = longest_gap(streams, used, time.perf_counter())
    return Noticed(until - since, gap / step, first_use / step)


async def _all_have(streams: Sequence[Clocked], num_tokens: int) -> None:
    """Wait until every stream has ``num_tokens`` tokens, or all of its own."""
    # Looking now and then costs the streams less than an event per token.
    while min(len(stream.token_times) for stream in streams) < min(num_tokens, NEW):  # noqa: ASYNC110
        await asyncio.sleep(0.002)


async def _next_token(streams: Sequence[Clocked]) -> None:
    """Wait until every stream has one more token, so that a gap that began is over."""
    await _all_have(streams, 1 + max(len(stream.token_times) for stream in streams))
