"""One soak from start to end: furnish, warm up, rest, soak, rest, check, stop."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from loadtests.soak import checks
from loadtests.soak.asks import Ask, Call
from loadtests.soak.chats import (
    GREEDY,
    QUESTIONS,
    ask_wrongly,
    burst,
    chat,
    hurry,
    leave,
    look_around,
    read_slowly,
    stall,
    take_part,
)
from loadtests.soak.checks import Check
from loadtests.soak.client import Client
from loadtests.soak.meaning import GONE
from loadtests.soak.operators import Operators
from loadtests.soak.server import GRACE_S, Sample, Soaked
from loadtests.soak.world import BASE, World
from loadtests.tally import percentile

JSON = dict[str, Any]
NUM_CHATS, NUM_USERS, NUM_LEAVERS, NUM_SLOW = 8, 3, 3, 2
SAMPLE_EVERY_S = 1.0
WARM_UP_PART = 0.15
REST_TIMEOUT_S = 150.0  # until everything that was begun has ended
REST_POLL_S = 0.05
NUM_ASKED_AGAIN = 60
NUM_LAST_STREAMS = 4  # run while SIGTERM arrives
AUDIT_PAGE = 1000
MIB = 2**20


@dataclass(frozen=True)
class Plan:
    """How long, and how often things change."""

    duration_s: float
    line_every_s: float = 60.0
    operators_pause_s: float = 1.0
    burst_every_s: float = 12.0


@dataclass
class Soak:
    """The parts of one run."""

    plan: Plan
    server: Soaked
    world: World
    client: Client
    operators: Operators
    say: Callable[[str], None]

    async def run(self) -> JSON:
        """Everything. The report; its ``checks`` say whether it passed."""
        world, plan = self.world, self.plan
        await self.operators.furnish()
        world.open()
        async with asyncio.TaskGroup() as tasks:
            for endless in self._endless():
                tasks.create_task(endless)
            await asyncio.sleep(WARM_UP_PART * plan.duration_s)
            before = await self._rest()
            warm_s = world.age_s
            world.open()
            tasks.create_task(self.operators.train())
            await asyncio.sleep((1 - WARM_UP_PART) * plan.duration_s)
            world.end()
        after = await self._rest()
        await self._ask_again()
        found = await self._look()
        found += [*checks.process_is_as_before(before, after), self._memory(warm_s)]
        found += await self._stop()
        found += checks.nothing_lost(world.book)
        found.append(checks.everything_happened(world.book))
        return self._report(found, before, after, warm_s)

    def _endless(self) -> list[Any]:
        """All that goes on at once; the training joins after the warm-up."""
        client, operators, plan = self.client, self.operators, self.plan
        pause_s = plan.operators_pause_s
        return [
            *(chat(client) for _ in range(NUM_CHATS)),
            *(take_part(client) for _ in range(NUM_USERS)),
            *(leave(client) for _ in range(NUM_LEAVERS)),
            *(read_slowly(client) for _ in range(NUM_SLOW)),
            stall(client),
            hurry(client),
            burst(client, plan.burst_every_s),
            ask_wrongly(client),
            look_around(client),
            operators.change_versions(pause_s),
            operators.flip(pause_s),
            operators.load_and_unload(pause_s / 2),
            operators.experiment(4 * pause_s),
            self._watch(),
            self._tell(),
        ]

    async def _watch(self) -> None:
        """The server's process, once a second while clients are at it."""
        while await self.world.may_go_on():
            book = self.world.book
            self.server.samples.append(self.server.sample(self.world.age_s, book.num_open))
            await asyncio.sleep(SAMPLE_EVERY_S)

    async def _tell(self) -> None:
        """A line of progress now and then."""
        last_s, last_tokens = self.world.age_s, 0
        while not await self.world.is_over_within(self.plan.line_every_s):
            stats = await self.client.call(Call("look", "GET", "/admin/stats"))
            if stats is None:
                continue
            num_tokens = sum(row["completion_tokens"] for row in stats["adapters"].values())
            passed_s, book = self.world.age_s - last_s, self.world.book
            page = book.turn_page()
            p90_s = percentile(page.ttft_s, 90)
            sample = self.server.samples[-1]
            self.say(
                f"{self.world.age_s / 60:5.1f} min: {book.num_requests:,} requests "
                f"({page.requests / passed_s:.0f}/s), "
                f"{(num_tokens - last_tokens) / passed_s:,.0f} tokens/s, TTFT P90 "
                f"{'-' if p90_s is None else f'{1000 * p90_s:.0f} ms'}, "
                f"{sample.rss_bytes / MIB:.1f} MiB, {sample.num_fds} descriptors, "
                f"{sample.num_threads} threads, {len(book.lost)} lost"
            )
            last_s, last_tokens = self.world.age_s, num_tokens

    async def _rest(self) -> Sample:
        """Let everything end; the process at rest."""
        self.world.close()
        for _ in range(int(REST_TIMEOUT_S / REST_POLL_S)):
            if not self.world.book.num_open:
                break
            await asyncio.sleep(REST_POLL_S)
        await self.client.hang_up()
        await asyncio.sleep(1.0)  # what we left and closed, the server may just be noticing
        return self.server.sample(self.world.age_s, self.world.book.num_open)

    async def _ask_again(self) -> None:
        """Some of the questions once more, each alone: the answers must be those given in the
        crowd. The client compares, and books a difference as lost."""
        world = self.world
        alive = {BASE, *(version.id for version in world.standing())}
        asked = [json.loads(key) for key in world.sayings.texts]
        asked = [question for question in asked if question[0] in alive]
        for version, path, place, body in world.random.sample(
            asked, min(NUM_ASKED_AGAIN, len(asked))
        ):
            model = world.base_id if version == BASE else version
            await self.client.ask(Ask("again", body | {"model": model, "n": place + 1}, path))

    async def _look(self) -> list[Check]:
        """What the server says of itself at rest."""
        stats = await self._get("/admin/stats")
        adapters = await self._get("/admin/adapters")
        metrics = await self._get("/metrics")
        code, printed = await self.server.cli("adapters", "verify")
        book = self.world.book
        return [
            *checks.idle(stats, metrics["text"], adapters["data"]),
            *checks.registry_is_whole(
                code, printed, adapters, set(self.world.versions), self._aliases()
            ),
            checks.audit_is_complete(book, await self._audit()),
            *checks.counters_agree(book, stats),
            checks.was_tight(stats),
        ]

    async def _get(self, path: str) -> JSON:
        found = await self.client.call(Call("look", "GET", path))
        if found is None:
            raise RuntimeError(f"GET {path} failed at rest: {self.world.book.lost[-1]}")
        return found

    async def _audit(self) -> list[JSON]:
        """The whole trail."""
        entries: list[JSON] = []
        while True:
            after = f"&after={entries[-1]['id']}" if entries else ""
            page = await self._get(f"/admin/audit?order=asc&limit={AUDIT_PAGE}{after}")
            entries += page["data"]
            if not page["has_more"]:
                return entries

    def _aliases(self) -> dict[str, int]:
        """name@alias → version number, as we put them."""
        aliases = {}
        for model, meaning in self.world.meanings.items():
            (version,) = meaning.now
            if version == GONE or model.startswith("ft:"):
                continue
            label = model if "@" in model else f"{model}@champion"
            aliases[label] = int(version.rpartition("@")[2])
        return aliases

    def _memory(self, warm_s: float) -> Check:
        samples = [sample for sample in self.server.samples if sample.at_s >= warm_s]
        is_exact = self.world.sayings.is_exact
        return checks.memory_is_flat(samples, checks.allowed_growth(self.plan.duration_s, is_exact))

    async def _stop(self) -> list[Check]:
        """SIGTERM while a few streams run: they come whole, and the process ends well."""
        body = {"model": self.world.base_id, "max_tokens": 400, "ignore_eos": True, **GREEDY}
        body |= {"messages": [{"role": "user", "content": QUESTIONS[0]}], "stream": True}
        streams = [
            asyncio.create_task(self.client.ask(Ask("last", body))) for _ in range(NUM_LAST_STREAMS)
        ]
        await asyncio.sleep(0.2)
        started = time.monotonic()
        self.server.stop()
        await asyncio.gather(*streams)
        code = await self.server.exit_code(GRACE_S + 10)
        return [
            checks.stopped(code, time.monotonic() - started, GRACE_S),
            checks.log_is_quiet(self.server.complaints()),
        ]

    def _report(self, found: list[Check], before: Sample, after: Sample, warm_s: float) -> JSON:
        world = self.world
        p90_s = percentile(world.book.ttft_s, 90)
        return {
            "seconds": world.age_s,
            "warm_s": warm_s,
            "ttft_p90_ms": None if p90_s is None else 1000 * p90_s,
            "compared": world.sayings.num_compared,
            "checks": [asdict(check) for check in found],
            "at_rest": [asdict(before), asdict(after)],
            **world.book.report(),
            "samples": [asdict(sample) for sample in self.server.samples],
        }
