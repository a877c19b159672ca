"""The rows that are loads: first token, throughput at several streams, the price of adapters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from server.bench.figure import Aim, Bound, Figure, at_least, at_most, fixed, ratios
from server.bench.floors import Traffic, percentile, prefill_s, tokens_per_s
from server.bench.machine import Ceilings
from server.bench.run import Run
from server.bench.traffic import Client, random_adapter

LONG_PROMPT = 512
PROMPT, NEW = 128, 128
RANK, NUM_ADAPTERS, LARGE_RANK = 16, 8, 256
WARM_UP_PROMPT = 16
FIRST_TOKEN_REPEATS = 3
STREAM_AIMS = {1: at_least(24), 8: at_least(150), 16: at_least(260)}  # tokens/s


@dataclass(frozen=True)
class Mix:
    """One request per entry of ``adapters``, all at once."""

    key: str
    title: str
    adapters: tuple[str | None, ...]
    aim: Aim | None = None

    def traffic(self, num_prompt: int, num_new: int, rank: int) -> Traffic:
        """The same for the arithmetic; all requests use an adapter or none does."""
        different = {adapter for adapter in self.adapters if adapter is not None}
        return Traffic(
            num_streams=len(self.adapters),
            num_prompt=num_prompt,
            num_new=num_new,
            adapter_ranks=(rank,) * len(different),
            rank_per_token=rank if different else 0,
        )


def base_mix(num_streams: int, aim: Aim | None = None) -> Mix:
    plural = "s" if num_streams > 1 else ""
    return Mix(
        f"streams_{num_streams}", f"{num_streams} stream{plural}", (None,) * num_streams, aim
    )


async def first_token(run: Run, client: Client) -> Figure:
    """TTFT of a long prompt, nothing else running."""
    samples = []
    for _ in run.rounds("first token", run.repeats * FIRST_TOKEN_REPEATS):
        answer = await client.ask(client.prompt(LONG_PROMPT), 1)
        samples.append(answer.ttft_s * 1e3)
    title = f"TTFT, {LONG_PROMPT}-token prompt, alone"
    return Figure("ttft", title, "ms", tuple(samples), _first_token_ms(run), at_most(330))


def _first_token_ms(run: Run) -> Bound:
    return lambda ceilings: 1e3 * prefill_s(run.cost, Traffic(1, LONG_PROMPT, 1), ceilings)


async def throughput(
    run: Run, client: Client, mixes: Sequence[Mix], rank: int = RANK
) -> dict[str, Figure]:
    """Output tokens/s over whole requests; the mixes take turns. By the mix's key."""
    num_new = run.num_new(NEW)
    samples: dict[str, list[float]] = {mix.key: [] for mix in mixes}
    ttfts: dict[str, list[float]] = {mix.key: [] for mix in mixes}
    for mix in mixes:
        await client.burst(mix.adapters, WARM_UP_PROMPT, 4)
    for turn in run.rounds("streams", run.repeats * len(mixes)):
        mix = mixes[turn % len(mixes)]
        rate, answers = await client.burst(mix.adapters, PROMPT, num_new)
        samples[mix.key].append(rate)
        ttfts[mix.key] += [a.ttft_s * 1e3 for a in answers]
    return {
        mix.key: Figure(
            mix.key,
            mix.title,
            "tok/s",
            tuple(samples[mix.key]),
            partial(tokens_per_s, run.cost, mix.traffic(PROMPT, num_new, rank)),
            mix.aim,
            {
                "streams": len(mix.adapters),
                "ttft_p50_ms": percentile(ttfts[mix.key], 50),
                "ttft_p90_ms": percentile(ttfts[mix.key], 90),
            },
        )
        for mix in mixes
    }


def share_of(figure: Figure, base: Figure, title: str, aim: Aim) -> Figure:
    """``figure`` in per cent of ``base``, pair by pair; its floor is the ratio of theirs."""
    samples = ratios(figure.samples, base.samples)
    return Figure(f"{figure.key}_share", title, "%", samples, _share_bound(figure, base), aim)


def _share_bound(figure: Figure, base: Figure) -> Bound:
    own, other = figure.bound, base.bound
    assert own is not None
    assert other is not None
    return lambda ceilings: 100 * own(ceilings) / other(ceilings)


async def adapter_mixes(run: Run, client: Client) -> list[Mix]:
    """Load eight adapters; one shared by eight streams, and one for each."""
    keys = [
        await client.add(random_adapter(run.setup.base, RANK, seed))
        for seed in run.rounds("loading adapters", NUM_ADAPTERS)
    ]
    return [
        Mix("shared", "8 streams, one adapter for all", (keys[0],) * NUM_ADAPTERS),
        Mix("eight", "8 streams, 8 adapters", tuple(keys)),
    ]


async def main_loads(run: Run, wanted: frozenset[str]) -> list[Figure]:
    """Groups ``ttft``, ``streams`` and ``adapters`` on one engine, all mixes taking turns."""
    figures: list[Figure] = []
    async with run.setup.client() as client:
        with_adapters = await adapter_mixes(run, client) if "adapters" in wanted else []
        if "ttft" in wanted:
            figures.append(await first_token(run, client))
        counts = set(run.streams) if "streams" in wanted else set()
        if with_adapters:
            counts.add(NUM_ADAPTERS)  # the base that they are compared with
        mixes = [base_mix(n, STREAM_AIMS.get(n)) for n in sorted(counts)] + with_adapters
        if mixes:
            measured = await throughput(run, client, mixes)
            figures += measured.values()
            if with_adapters:
                figures += _adapter_shares(measured)
    return figures


def _adapter_shares(measured: dict[str, Figure]) -> list[Figure]:
    base = measured["streams_8"]
    return [
        share_of(measured["eight"], base, "8 different adapters, of base", at_least(82)),
        share_of(measured["shared"], base, "one adapter for all 8, of base", at_least(95)),
    ]


async def large_rank(run: Run) -> list[Figure]:
    """Group ``rank256``: one adapter of rank 256 at 1 and 8 streams beside base."""
    async with run.setup.client(max_rank=LARGE_RANK, max_resident_adapters=1) as client:
        key = await client.add(random_adapter(run.setup.base, LARGE_RANK, 0))
        mixes = []
        for n in (1, 8):
            mixes.append(
                Mix(
                    f"rank256_base_{n}",
                    f"base beside it, {n} stream{'s' if n > 1 else ''}",
                    (None,) * n,
                )
            )
            mixes.append(
                Mix(
                    f"rank256_{n}",
                    f"one rank-256 adapter, {n} stream{'s' if n > 1 else ''}",
                    (key,) * n,
                )
            )
        measured = await throughput(run, client, mixes, LARGE_RANK)
    figures = list(measured.values())
    for n in (1, 8):
        pair = measured[f"rank256_{n}"], measured[f"rank256_base_{n}"]
        title = f"one rank-256 adapter at {n} stream{'s' if n > 1 else ''}, of base"
        figures.append(share_of(*pair, title, at_least(70)))
    return figures


async def untouched(run: Run) -> list[Figure]:
    """Group ``untouched``: base-only traffic with adapters loaded, and without any."""
    rates: dict[bool, list[float]] = {True: [], False: []}
    num_new = run.num_new(NEW // 2)
    async with run.setup.client() as loaded, run.setup.client() as plain:
        await adapter_mixes(run, loaded)
        for turn in run.rounds("base beside adapters", 4 * run.repeats):
            is_loaded = turn % 4 in (1, 2)  # plain, loaded, loaded, plain: drift cancels out
            client = loaded if is_loaded else plain
            rate, _ = await client.burst((None,) * 8, PROMPT, num_new)
            rates[is_loaded].append(rate)
    title = "base-only traffic with adapters loaded, of an engine with none"
    samples = ratios(rates[True], rates[False])
    return [Figure("untouched", title, "%", samples, fixed(100), at_least(98))]


async def second_turn(run: Run) -> list[Figure]:
    """Group ``chat``: TTFT of a second turn in per cent of the first's."""
    num_answer, num_question = 16, 32
    shares, firsts, seconds = [], [], []
    async with run.setup.client() as client:
        for _ in run.rounds("second turns", 2 * run.repeats):
            prompt = client.prompt(LONG_PROMPT)
            first = await client.ask(prompt, num_answer)
            follow_up = (*prompt, *first.token_ids, *client.prompt(num_question))
            second = await client.ask(follow_up, num_answer)
            firsts.append(first.ttft_s * 1e3)
            seconds.append(second.ttft_s * 1e3)
            shares.append(100 * second.ttft_s / first.ttft_s)
    first_ms = percentile(firsts, 50)
    again = Traffic(1, LONG_PROMPT + num_answer + num_question, 1)

    def bound(ceilings: Ceilings) -> float:
        """No second turn can be a smaller share of this first one."""
        floor_s = prefill_s(run.cost, again, ceilings, num_cached=LONG_PROMPT)
        return 1e5 * floor_s / first_ms

    details = {"first_ms": first_ms, "second_ms": percentile(seconds, 50)}
    title = f"second turn of a chat, {LONG_PROMPT} shared tokens: TTFT of the first's"
    return [Figure("chat", title, "% of time", tuple(shares), bound, at_most(20), details)]
