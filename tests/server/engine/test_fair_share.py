"""Between tenants and between adapters: who goes first, who gives way, and that nobody starves."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter
from dataclasses import dataclass, field

import pytest

from server.engine.blocks import BlockPool
from server.engine.fair_share import FairLine, Turn
from server.engine.output import OutputText
from server.engine.request import GenerationRequest, SamplingParams, Share
from server.engine.scheduler import Chunk, Scheduler, SchedulerLimits
from server.engine.sequence import Sequence
from tests.server.engine.fake import fake_engine, next_token, run_to_idle, step
from tests.server.engine.test_scheduler import RoomForAll

LIMITS = SchedulerLimits(max_num_seqs=32, max_batched_tokens=512)


@dataclass(frozen=True)
class Load:
    """Closed-loop streams of one tenant: a new request as soon as the last one has ended."""

    share: Share
    num_streams: int
    prompt: int = 128
    num: int = 32
    adapters: tuple[str | None, ...] = (None,)


@dataclass
class Simulated:
    """A scheduler whose steps take about the time that a 0.5B base takes on two cores."""

    num_blocks: int = 20_000
    now: float = 0.0
    draw: random.Random = field(default_factory=lambda: random.Random(1))
    ttft_s: dict[str, list[float]] = field(default_factory=dict)
    tokens: Counter[tuple[str, str | None]] = field(default_factory=Counter)
    _arrivals: list[tuple[float, int, Load]] = field(default_factory=list)
    _load_of: dict[str, Load] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(LIMITS, BlockPool(self.num_blocks, 16), RoomForAll())
        self._count = itertools.count()

    def run(self, *loads: Load, seconds: float = 60.0) -> None:
        for load in loads:
            for i in range(load.num_streams):
                at = self.now + 2.0 * i / load.num_streams
                heapq.heappush(self._arrivals, (at, next(self._count), load))
        until = self.now + seconds
        while self.now < until:
            while self._arrivals and self._arrivals[0][0] <= self.now:
                at, number, load = heapq.heappop(self._arrivals)
                self._submit(load, at, number)
            chunks = self.scheduler.schedule(self.now)
            if not chunks:
                self.now = self._arrivals[0][0]
                continue
            self.now += self._duration(chunks)
            for chunk in chunks:
                self._update(chunk)

    def _submit(self, load: Load, at: float, number: int) -> None:
        length = self.draw.randint(load.prompt // 2, load.prompt * 3 // 2)
        ids = tuple(self.draw.randrange(10**6) for _ in range(length))
        sampling = SamplingParams(max_tokens=self.draw.randint(load.num // 2, load.num * 3 // 2))
        adapter = load.adapters[number % len(load.adapters)]
        request = GenerationRequest(f"r{number}", ids, sampling, adapter, load.share)
        self._load_of[request.request_id] = load
        self.scheduler.add(Sequence(request, OutputText(lambda ids: ""), at))

    def _duration(self, chunks: list[Chunk]) -> float:
        num_prompt = sum(chunk.num_tokens for chunk in chunks if not chunk.is_decode)
        num_rows = sum(chunk.is_decode for chunk in chunks)
        return max(0.036, 0.020 + 0.00034 * num_prompt) + 0.001 * num_rows

    def _update(self, chunk: Chunk) -> None:
        seq, is_last = chunk.seq, chunk.is_last
        self.scheduler.update(chunk, 7 if is_last else None)
        if not is_last:
            return
        request = seq.request
        self.tokens[request.share.tenant, request.adapter] += 1
        if seq.first_token_at is None:
            seq.first_token_at = self.now
            ttft_s = self.ttft_s.setdefault(request.share.tenant, [])
            ttft_s.append(self.now - seq.submitted_at)
        if seq.num_generated >= request.sampling.max_tokens:
            self.scheduler.finish(seq)
            load = self._load_of.pop(request.request_id)
            heapq.heappush(self._arrivals, (self.now, next(self._count), load))


def p90(values: list[float]) -> float:
    return sorted(values)[int(0.9 * len(values))]


GREEDY = Load(Share("greedy"), 50, prompt=256, num=128)


@pytest.mark.parametrize(
    "polite",
    [
        Load(Share("polite"), 1),
        Load(Share("polite"), 4),
        Load(Share("polite"), 8),
        Load(Share("polite"), 2, prompt=512),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "greedy",
    [GREEDY, Load(Share("greedy"), 50, prompt=1024), Load(Share("greedy"), 50, prompt=64, num=16)],
    ids=str,
)
def test_a_greedy_tenant_does_not_delay_anothers_first_tokens(polite: Load, greedy: Load) -> None:
    alone, beside = Simulated(), Simulated()
    alone.run(polite)
    beside.run(polite, greedy)
    assert len(beside.ttft_s["polite"]) > 15
    assert p90(beside.ttft_s["polite"]) <= 1.5 * p90(alone.ttft_s["polite"])
    assert beside.ttft_s["greedy"], "and the greedy one is served"


def test_a_greedy_tenant_hides_behind_no_number_of_adapters() -> None:
    greedy = Load(Share("greedy"), 64, num=128, adapters=tuple(f"a{i}" for i in range(32)))
    polite = Load(Share("polite"), 4)
    alone, beside = Simulated(), Simulated()
    alone.run(polite)
    beside.run(polite, greedy)
    assert p90(beside.ttft_s["polite"]) <= 1.5 * p90(alone.ttft_s["polite"])


def test_tokens_follow_the_weights() -> None:
    simulated = Simulated()
    simulated.run(Load(Share("heavy", 3.0), 50), Load(Share("light"), 50), seconds=120)
    ratio = simulated.tokens["heavy", None] / simulated.tokens["light", None]
    assert 2.5 < ratio < 3.5


def test_a_tenants_share_does_not_grow_with_its_adapters() -> None:
    simulated = Simulated()
    many = Load(Share("many"), 40, adapters=("a", "b", "c", "d"))
    simulated.run(many, Load(Share("one"), 40, adapters=("e",)), seconds=120)
    num_many = sum(n for (tenant, _), n in simulated.tokens.items() if tenant == "many")
    assert 0.8 < num_many / simulated.tokens["one", "e"] < 1.25
    per_adapter = [simulated.tokens["many", adapter] for adapter in many.adapters]
    assert max(per_adapter) < 1.3 * min(per_adapter)


def test_adapters_of_one_tenant_follow_their_weights() -> None:
    simulated = Simulated()
    important, usual = Share("", 1.0, 4.0), Share("", 1.0, 1.0)
    loads = Load(important, 40, adapters=("a",)), Load(usual, 40, adapters=("b",))
    simulated.run(*loads, seconds=120)
    assert 3.2 < simulated.tokens["", "a"] / simulated.tokens["", "b"] < 4.8


def test_idle_time_earns_nothing() -> None:
    """Who comes after an hour shares evenly from then on, and does not catch up first."""
    simulated = Simulated()
    simulated.run(Load(Share("first"), 40), seconds=100)
    before = simulated.tokens["first", None]
    simulated.run(Load(Share("second"), 40), seconds=60)
    num_first = simulated.tokens["first", None] - before
    assert 0.8 < num_first / simulated.tokens["second", None] < 1.25


def test_asking_for_little_earns_little() -> None:
    """A tenant with a few slow streams cannot later have the engine to itself for minutes."""
    simulated = Simulated()
    first = Load(Share("first"), 40, prompt=600, num=8)
    simulated.run(first, Load(Share("little"), 3, prompt=32, num=200), seconds=100)
    simulated.ttft_s.clear()
    simulated.run(Load(Share("little"), 40, prompt=600, num=8), seconds=60)
    num_first, num_other = (len(simulated.ttft_s[tenant]) for tenant in ("first", "little"))
    assert num_first > 30
    assert 0.7 < num_first / num_other < 1.4


def test_nobody_comes_in_level_with_one_that_asks_for_little() -> None:
    simulated = Simulated()
    first = Load(Share("first"), 40, prompt=600, num=8)
    simulated.run(first, Load(Share("little", 10.0), 3, prompt=32, num=200), seconds=100)
    simulated.ttft_s.clear()
    simulated.run(Load(Share("second"), 40, prompt=600, num=8), seconds=60)
    num_first, num_second = (len(simulated.ttft_s[tenant]) for tenant in ("first", "second"))
    assert num_first > 30
    assert 0.7 < num_first / num_second < 1.4


def test_a_step_looks_at_each_flow_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small base makes a step in 1.5 ms; the square of the flows would take 20 ms."""
    num_looks = 0
    turn_of = FairLine._turn

    def counted(line: FairLine, seq: Sequence) -> Turn:
        nonlocal num_looks
        num_looks += 1
        return turn_of(line, seq)

    monkeypatch.setattr(FairLine, "_turn", counted)
    simulated = Simulated()
    adapters = tuple(f"a{i}" for i in range(32))
    for i in range(9):
        load = Load(Share(f"t{i}"), 32, num=10_000, adapters=adapters)
        for number in range(load.num_streams):
            simulated._submit(load, 0.0, 32 * i + number)
    for _ in range(10):
        num_looks, num_waiting = 0, len(simulated.scheduler.waiting)
        for chunk in simulated.scheduler.schedule(simulated.now):
            simulated._update(chunk)
        assert num_looks < 4 * num_waiting
    assert num_waiting > 250


def test_who_was_served_alone_is_not_punished_for_it() -> None:
    simulated = Simulated()
    simulated.run(Load(Share("first"), 1, num=4), seconds=100)
    simulated._arrivals.clear()  # the first one leaves for a while
    while simulated.scheduler.running:
        simulated.now += 1
        for chunk in simulated.scheduler.schedule(simulated.now):
            simulated._update(chunk)
        simulated._arrivals.clear()
    simulated.run(Load(Share("second"), 40), seconds=1)
    simulated.run(Load(Share("first"), 4), seconds=30)
    assert max(simulated.ttft_s["first"]) < 1.0


def test_a_cache_filled_by_one_tenant_has_room_for_another() -> None:
    greedy = Load(Share("greedy"), 50, prompt=1500, num=400)
    simulated = Simulated(num_blocks=1200)  # of 16 tokens: eight such answers
    simulated.run(greedy, Load(Share("polite"), 2), seconds=120)
    assert p90(simulated.ttft_s["polite"]) < 0.4


async def test_a_displaced_answer_goes_on_where_it_was() -> None:
    limits = SchedulerLimits(max_num_seqs=4, max_batched_tokens=32)
    engine, _ = fake_engine(limits=limits)

    def request(name: str, share: Share) -> GenerationRequest:
        sampling = SamplingParams(max_tokens=20, temperature=0, ignore_eos=True)
        return GenerationRequest(name, tuple(name.encode()), sampling, None, share)

    greedy = [engine.submit(request(f"g{i}", Share("greedy"))) for i in range(8)]
    await step(engine, 6)
    polite = [engine.submit(request(f"p{i}", Share("polite"))) for i in range(2)]
    await step(engine)
    assert engine.stats().num_displacements == 2
    assert all(stream.take_ready() for stream in polite), "both have their first token"
    await run_to_idle(engine)
    for name, stream in zip([f"g{i}" for i in range(8)], greedy, strict=True):
        tokens = [token for delta in stream.take_ready() for token in delta.token_ids]
        ids = list(name.encode())
        for token in tokens:
            assert token == next_token(None, ids)
            ids.append(token)
        assert len(tokens) == 20


def test_a_line_forgets_who_left() -> None:
    simulated = Simulated()
    for i in range(20):
        simulated.run(Load(Share(f"t{i}"), 2, num=4), seconds=3)
        simulated._arrivals.clear()
    while simulated.scheduler.running or simulated.scheduler.waiting:
        for chunk in simulated.scheduler.schedule(simulated.now):
            simulated._update(chunk)
        simulated._arrivals.clear()
    assert len(simulated.scheduler.waiting._tenants._accounts) <= 1
    assert not simulated.scheduler.waiting._places
