"""Many adapters, few slots: first-token times under Zipf traffic, against all adapters resident.

Requests arrive at random times at a fixed rate (an open loop), most for a few adapters and some
for each of the rest. The same arrivals run against an engine with slots for a quarter of the
adapters and one with slots for all, so the ratio is the price of taking turns. The rate is a share
of what the second engine was measured to do, so both are busy but not overrun.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass

from server.bench.figure import Figure, at_most, fixed
from server.bench.floors import percentile
from server.bench.loads import RANK
from server.bench.run import Run
from server.bench.traffic import Client, random_adapter

NUM_ADAPTERS, NUM_SLOTS = 32, 8
EXPONENT = 1.0
LOAD = 0.7  # of the measured capacity
PROMPT, NEW = 64, 32
REQUESTS_PER_ROUND = 40


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request: when, after the start, and for which adapter."""

    at_s: float
    adapter: int


def arrivals(number: int, per_s: float, num_adapters: int, seed: int) -> list[Arrival]:
    """A Poisson process whose adapters follow Zipf's law: the k-th has a share of 1/k."""
    source = random.Random(seed)
    weights = [1 / (rank + 1) ** EXPONENT for rank in range(num_adapters)]
    chosen = source.choices(range(num_adapters), weights, k=number)
    at_s, made = 0.0, []
    for adapter in chosen:
        at_s += source.expovariate(per_s)
        made.append(Arrival(at_s, adapter))
    return made


async def zipf(run: Run) -> list[Figure]:
    """Group ``zipf``: TTFT P90 with 8 slots in terms of that with a slot for each."""
    repeats = max(run.repeats, 2)
    slots: dict[str, list[float]] = {"few": [], "all": []}
    ratios = []
    async with (
        run.setup.client(max_resident_adapters=NUM_ADAPTERS) as all_resident,
        run.setup.client(max_resident_adapters=NUM_SLOTS) as few,
    ):
        keys = []
        for seed in run.rounds("loading 32 adapters, twice", NUM_ADAPTERS):
            weights = random_adapter(run.setup.base, RANK, seed)
            keys.append(await all_resident.add(weights))
            await few.add(weights, is_resident=False)
        per_s = LOAD * await _capacity(run, all_resident, keys)
        for turn in run.rounds(f"Zipf traffic, {per_s:.1f} requests/s", repeats):
            plan = arrivals(_num_requests(run), per_s, NUM_ADAPTERS, turn)
            pair = [("few", few), ("all", all_resident)]
            p90 = {}
            for name, client in pair if turn % 2 else reversed(pair):
                ttfts = await _replay(run, client, keys, plan)
                slots[name] += ttfts
                p90[name] = percentile(ttfts, 90)
            ratios.append(p90["few"] / p90["all"])
    details = {
        "requests_per_s": per_s,
        "pooled_ratio": percentile(slots["few"], 90) / percentile(slots["all"], 90),
        **{f"{n}_ttft_p{q}_ms": percentile(slots[n], q) for n in slots for q in (50, 90)},
    }
    title = f"{NUM_ADAPTERS} adapters, {NUM_SLOTS} slots, Zipf: TTFT P90 of all-resident"
    return [Figure("zipf", title, "x", tuple(ratios), fixed(1), at_most(1.3), details)]


def _num_requests(run: Run) -> int:
    return REQUESTS_PER_ROUND // 4 if run.is_quick else REQUESTS_PER_ROUND


async def _capacity(run: Run, client: Client, keys: Sequence[str]) -> float:
    """Requests per second with eight always running, each for another adapter."""
    num_new = run.num_new(NEW)
    await client.burst(keys[:NUM_SLOTS], PROMPT, num_new)
    rate, _ = await client.burst([*keys[:NUM_SLOTS]] * 2, PROMPT, num_new)
    return rate / num_new


async def _replay(
    run: Run, client: Client, keys: Sequence[str], plan: Sequence[Arrival]
) -> list[float]:
    """TTFT in ms of every arrival."""

    async def one(arrival: Arrival) -> float:
        prompt = client.prompt(PROMPT)
        await asyncio.sleep(arrival.at_s)
        answer = await client.ask(prompt, run.num_new(NEW), keys[arrival.adapter])
        return answer.ttft_s * 1e3

    return list(await asyncio.gather(*[one(arrival) for arrival in plan]))
