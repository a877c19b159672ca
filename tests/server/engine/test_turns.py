"""More adapters than places in the bank: who waits, how long, and what it costs the others."""

from __future__ import annotations

import random
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import pytest

from server.engine.blocks import BlockPool
from server.engine.errors import OutOfMemory
from server.engine.output import OutputText
from server.engine.request import GenerationRequest, SamplingParams, Share
from server.engine.residency import AdapterResidency
from server.engine.scheduler import Chunk, Scheduler, SchedulerLimits
from server.engine.sequence import Sequence
from server.engine.slots import AdapterSlots
from tests.server.engine.fake import FakePacked

if TYPE_CHECKING:
    from server.engine.bank import PackedAdapter

RANK = 16


@dataclass
class Served:
    """A scheduler and a bank whose steps take simulated time."""

    num_places: int
    limits: SchedulerLimits = field(default_factory=SchedulerLimits)
    num_blocks: int = 4000
    now: float = 0.0
    ttft_s: list[float] = field(default_factory=list)
    silence_s: list[float] = field(default_factory=list)  # between two tokens of one answer
    writes_per_step: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        slots = AdapterSlots(self.num_places, self.num_places * RANK)
        self.bank = AdapterResidency(slots, lambda row, adapter: None)
        blocks = BlockPool(self.num_blocks, 16)
        self.scheduler = Scheduler(self.limits, blocks, self.bank)
        self._spoke_at: dict[Sequence, float] = {}

    def know(self, *keys: str) -> None:
        for key in keys:
            self.bank.add(key, cast("PackedAdapter", FakePacked(key, RANK)))

    def submit(
        self,
        adapter: str | None,
        *,
        prompt: int = 20,
        num: int = 8,
        at: float | None = None,
        share: Share = Share(),
    ) -> Sequence:
        name = f"{adapter}-{random.random()}"
        sampling = SamplingParams(max_tokens=num)
        ids = tuple(hash((name, i)) % 1000 for i in range(prompt))
        request = GenerationRequest(name, ids, sampling, adapter, share)
        at = self.now if at is None else at
        seq = Sequence(request, OutputText(lambda ids: ""), at)
        if adapter is not None:
            self.bank.retain(adapter)
        self.scheduler.add(seq)
        return seq

    def step(self) -> list[Chunk]:
        num_writes = self.bank.num_writes
        self.bank.begin_step(is_busy=bool(self.scheduler.running))
        self.bank.collect()
        chunks = self.scheduler.schedule(self.now)
        self.writes_per_step.append(self.bank.num_writes - num_writes)
        if chunks:
            self.now += self._duration(chunks)
        for chunk in chunks:
            if not chunk.is_last:
                self.scheduler.update(chunk, None)
                continue
            self.scheduler.update(chunk, 7)
            self._note_token(chunk.seq)
        return chunks

    def _duration(self, chunks: list[Chunk]) -> float:
        """Seconds, near what a 0.5B base with rank-16 adapters takes on two cores."""
        num_tokens = sum(chunk.num_tokens for chunk in chunks)
        num_adapters = len({chunk.seq.request.adapter for chunk in chunks})
        num_writes = self.writes_per_step[-1]
        return 0.040 + 0.0005 * num_tokens + 0.003 * num_adapters + 0.012 * num_writes

    def _note_token(self, seq: Sequence) -> None:
        if seq.first_token_at is None:
            seq.first_token_at = self.now
            self.ttft_s.append(self.now - seq.submitted_at)
        else:
            self.silence_s.append(self.now - self._spoke_at[seq])
        self._spoke_at[seq] = self.now
        if seq.num_generated >= seq.request.sampling.max_tokens:
            self.scheduler.finish(seq)
            if seq.request.adapter is not None:
                self.bank.release(seq.request.adapter)


def zipf_traffic(num_places: int, seed: int, *, num_blocks: int = 4000) -> Served:
    """400 requests for 32 adapters in 220 s: about nine answers run at once."""
    served = Served(num_places, num_blocks=num_blocks)
    keys = [f"k{i}" for i in range(32)]
    served.know(*keys)
    draw = random.Random(seed)
    arrivals, at = [], 0.0
    for _ in range(400):
        at += draw.expovariate(1.8)
        key = draw.choices(keys, [1 / (i + 1) for i in range(32)])[0]
        arrivals.append((at, key, draw.randint(1, 128)))
    arrivals.reverse()
    while arrivals or served.scheduler.waiting or served.scheduler.running:
        while arrivals and arrivals[-1][0] <= served.now:
            at, key, num = arrivals.pop()
            served.submit(key, prompt=256, num=num, at=at)
        if not served.step():
            served.now = arrivals[-1][0]
    assert not served.scheduler.suspended
    assert len(served.ttft_s) == 400
    return served


def p90(values: list[float]) -> float:
    return sorted(values)[int(0.9 * len(values))]


@pytest.mark.parametrize("seed", [1, 2])
def test_eight_places_for_32_adapters_keep_the_first_token_near_all_resident(seed: int) -> None:
    few, all_resident = zipf_traffic(8, seed), zipf_traffic(32, seed)
    assert p90(few.ttft_s) <= 1.3 * p90(all_resident.ttft_s)
    assert few.scheduler.num_suspensions > 100, "there was something to decide"
    # Two seconds' suspension, then its turn after others whose two seconds were over sooner.
    assert max(few.silence_s) < 2 * few.limits.max_suspension_s
    assert max(few.writes_per_step) <= 1


def test_a_small_cache_does_not_turn_turns_into_thrashing() -> None:
    """Suspended answers keep their K/V: reading them again each turn took everything."""
    few, all_resident = (zipf_traffic(n, 1, num_blocks=400) for n in (8, 32))
    assert few.now < 1.1 * all_resident.now


def test_who_cannot_be_placed_blocks_nobody_behind() -> None:
    served = Served(1)
    served.know("hot", "cold")
    long = served.submit("hot", prompt=600)  # two steps
    served.step()
    cold = served.submit("cold")
    base, hot = served.submit(None), served.submit("hot")
    served.step()
    assert set(served.scheduler.running) == {long, base, hot}
    assert long.num_generated == 1, "who still reads its prompt keeps its place"
    assert list(served.scheduler.waiting) == [cold]
    served.step()
    assert set(served.scheduler.running) == {base, cold}
    assert set(served.scheduler.suspended) == {long, hot}


def test_a_suspended_answer_keeps_its_keys_and_comes_back_when_there_is_room() -> None:
    served = Served(1)
    served.know("a", "b")
    first = served.submit("a", num=50)
    for _ in range(3):
        served.step()
    second = served.submit("b", num=3)
    served.step()
    assert served.scheduler.suspended == [first]
    assert first.num_pending == 1
    table = list(first.block_table)
    while second in served.scheduler.running:
        served.step()
    (chunk,) = served.step()
    assert (chunk.seq, chunk.num_tokens) == (first, 1)
    assert first.block_table[: len(table)] == table


def test_a_suspended_answer_takes_a_place_back_after_a_bounded_wait() -> None:
    served = Served(1)
    served.know("a", "b")
    first = served.submit("a", num=400)
    for _ in range(3):
        served.step()
    second = served.submit("b", num=400)
    served.step()
    assert served.scheduler.suspended == [first]
    began = served.now
    while first in served.scheduler.suspended:
        served.step()
    assert served.now - began < served.limits.max_suspension_s + 0.2
    assert served.scheduler.suspended == [second]


def test_a_suspended_answer_outlives_a_lack_of_memory_for_its_way_back() -> None:
    served = Served(1)
    served.know("a", "b")
    first = served.submit("a", num=50)
    for _ in range(3):
        served.step()
    second, base = served.submit("b", num=3), served.submit(None, num=20)
    served.step()

    def fail(row: int, adapter: PackedAdapter) -> None:
        raise OutOfMemory("no memory for the adapter")

    write, served.bank._write = served.bank._write, fail
    while second in served.scheduler.running:
        served.step()
    served.step()
    assert served.scheduler.suspended == [first]
    assert served.scheduler.running == [base]
    assert served.scheduler.failed == []
    served.bank._write = write
    served.step()
    assert first in served.scheduler.running


def test_a_burst_of_new_adapters_costs_running_answers_one_write_per_step() -> None:
    served = Served(8)
    keys = [f"k{i}" for i in range(8)]
    served.know(*keys, "running")
    for key in keys[:4]:
        served.submit(key)
    served.step()
    assert served.writes_per_step == [4], "nobody ran who could be delayed"
    for key in keys[4:]:
        served.submit(key)
    preload: Future[None] = Future()
    served.bank.preload("running", preload)
    for _ in range(6):
        served.step()
    assert served.writes_per_step[1:] == [1, 1, 1, 1, 1, 0]
    assert preload.done()


def test_a_waiting_requests_adapter_is_fetched_before_its_turn_into_spare_places_only() -> None:
    served = Served(3, SchedulerLimits(max_num_seqs=1))
    served.know("a", "b", "c", "d")
    served.submit("a", num=50)
    served.step()
    for key in ("b", "c", "d"):
        served.submit(key)
    for _ in range(4):
        served.step()
    assert set(served.bank.resident_bytes()) == {"a", "b", "c"}, "d may not push out b or c"
    assert served.bank.num_writes == 3


def test_the_least_recently_used_goes_first_and_nobody_in_vain() -> None:
    slots = AdapterSlots(max_adapters=4, num_rows=16)
    for key, rank in (("a", 2), ("b", 2), ("c", 4), ("d", 4)):
        assert slots.place(key, rank) is not None
        slots.pin(key)
    for key in ("b", "a", "c"):
        slots.unpin(key)
    slots.pin("b")
    slots.unpin("b")  # used later than a
    assert slots.place("e", 2) == 0
    assert "a" not in slots
    assert "b" in slots
    assert slots.place("f", 4) == 4, "where c was, used before b"
    assert slots.place("big", 16) is None
    assert slots.keys == ["d", "b", "e", "f"], "whose going would not have helped has stayed"


def test_only_who_stands_in_the_way_is_evicted() -> None:
    slots = AdapterSlots(max_adapters=8, num_rows=8)
    for key, rank in (("small", 2), ("large", 4), ("pinned", 2)):
        slots.place(key, rank)
    slots.pin("pinned")
    assert slots.place("new", 4) == 2
    assert slots.keys == ["small", "pinned", "new"], "without small's two rows it fits as well"


def test_base_requests_ask_nothing_of_the_bank() -> None:
    class NoBank:
        def __getattr__(self, name: str) -> object:
            raise AssertionError(f"a base request used the bank's {name}")

    scheduler = Scheduler(
        SchedulerLimits(max_num_seqs=2), BlockPool(64, 16), cast("AdapterResidency", NoBank())
    )
    sampling = SamplingParams(max_tokens=3)
    for i in range(5):
        request = GenerationRequest(f"r{i}", (1, 2, 3, i), sampling)
        scheduler.add(Sequence(request, OutputText(lambda ids: ""), 0.0))
    for _ in range(30):
        for chunk in scheduler.schedule(0.0):
            scheduler.update(chunk, 7)
            if chunk.seq.num_generated == 3:
                scheduler.finish(chunk.seq)
    assert not scheduler.running
    assert not scheduler.waiting
