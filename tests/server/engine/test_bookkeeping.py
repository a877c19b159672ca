"""The scheduler's books against a count from scratch after every step, whatever happens.

Tenants and adapters with all kinds of weights, few seats, few blocks, few places in the bank,
prompts with common beginnings, aborts and steps without memory.
"""

from __future__ import annotations

import random
from collections import Counter
from typing import cast

from server.engine.bank import PackedAdapter
from server.engine.blocks import BlockPool
from server.engine.fair_share import DECODE_COST, Account
from server.engine.output import OutputText
from server.engine.request import GenerationRequest, SamplingParams, Share
from server.engine.residency import AdapterResidency
from server.engine.scheduler import Chunk, Scheduler, SchedulerLimits
from server.engine.sequence import Sequence
from server.engine.slots import AdapterSlots
from tests.server.engine.fake import FakePacked

BLOCK_SIZE = 4
WEIGHTS = (0.001, 1.0, 1.0, 3.0, 1000.0)
MAX_STEPS_TO_AN_END = 1000  # most cases need less than 100


class Case:
    """One scheduler of random size under random traffic."""

    def __init__(self, seed: int) -> None:
        self.draw = draw = random.Random(seed)
        self.num_blocks = draw.choice((8, 12, 16, 24, 64))
        num_places = draw.choice((1, 2, 8))
        self.bank = AdapterResidency(AdapterSlots(num_places, num_places * 8), lambda *_: None)
        self.blocks = BlockPool(self.num_blocks, BLOCK_SIZE)
        limits = SchedulerLimits(
            max_num_seqs=draw.choice((1, 2, 3, 8)),
            max_batched_tokens=draw.choice((1, 4, 16, 32)),
            max_suspension_s=draw.choice((0.0, 0.04, 2.0)),
        )
        self.scheduler = Scheduler(limits, self.blocks, self.bank)
        self.adapters: list[str | None] = [None, *(f"a{i}" for i in range(draw.choice((0, 1, 4))))]
        for key in self.adapters[1:]:
            packed = FakePacked(str(key), draw.choice((1, 4, 8)))
            self.bank.add(str(key), cast("PackedAdapter", packed))
        num_tenants = draw.choice((1, 2, 5))
        self.tenants = [Share(f"t{i}", draw.choice(WEIGHTS)) for i in range(num_tenants)]
        self.open: set[Sequence] = set()
        self.num_left = 20  # requests to come
        self.num_steps_since_an_end = 0
        self.spent = {share.tenant: 0.0 for share in self.tenants}  # of all steps
        self.charged = dict(self.spent)
        self._listen_to_charges()

    def run(self) -> Scheduler:
        now = 0.0
        while self.open or self.num_left:
            if self.num_left and self.draw.random() < 0.6:
                self.submit(now)
            if self.open and self.draw.random() < 0.03:
                self.end(self.draw.choice(sorted(self.open, key=lambda s: s.number)))
            self.step(now)
            now += 0.01
        assert self.blocks.num_free == self.num_blocks
        assert not self.scheduler.waiting._places
        return self.scheduler

    def submit(self, now: float) -> None:
        self.num_left -= 1
        draw, capacity = self.draw, self.num_blocks * BLOCK_SIZE
        num_prompt = draw.randint(1, draw.choice((8, capacity - 1)))
        num_shared = draw.randint(0, num_prompt)
        ids = (*range(num_shared), *(draw.randrange(1000) for _ in range(num_prompt - num_shared)))
        sampling = SamplingParams(max_tokens=draw.randint(1, min(20, capacity - num_prompt)))
        adapter, share = draw.choice(self.adapters), draw.choice(self.tenants)
        request = GenerationRequest(f"r{self.num_left}", ids, sampling, adapter, share)
        if adapter is not None:
            self.bank.retain(adapter)
        seq = Sequence(request, OutputText(lambda ids: ""), now)
        self.scheduler.add(seq)
        self.open.add(seq)

    def end(self, seq: Sequence) -> None:
        self.scheduler.finish(seq)
        self.open.remove(seq)
        self.num_steps_since_an_end = 0
        if seq.request.adapter is not None:
            self.bank.release(seq.request.adapter)

    def step(self, now: float) -> None:
        scheduler, waiting = self.scheduler, set(self.scheduler.waiting)
        num_displacements = scheduler.num_displacements
        self.bank.begin_step(is_busy=bool(scheduler.running))
        self.bank.collect()
        chunks = scheduler.schedule(now)
        if scheduler.num_displacements > num_displacements:
            assert waiting & {chunk.seq for chunk in chunks}, "somebody was displaced in vain"
        self.check(chunks)
        if chunks and self.draw.random() < 0.02:  # out of memory: nothing has been computed
            num_tokens = sum(chunk.num_tokens for chunk in chunks)
            if num_tokens > 1:
                scheduler.shrink(num_tokens)
                self.check([])
                return
        scheduler.budget.note_good_step()
        for chunk in chunks:
            is_last = chunk.is_last
            scheduler.update(chunk, self.draw.randrange(1000) if is_last else None)
            if is_last:
                chunk.seq.first_token_at = chunk.seq.first_token_at or now
            if chunk.seq.num_generated >= chunk.seq.request.sampling.max_tokens:
                self.end(chunk.seq)
        self.check([])
        self.num_steps_since_an_end += 1
        assert self.num_steps_since_an_end < MAX_STEPS_TO_AN_END, "nobody gets to an end"

    def check(self, chunks: list[Chunk]) -> None:
        scheduler = self.scheduler
        assert not scheduler.failed
        assert len(chunks) == len({chunk.seq for chunk in chunks}), "scheduled twice"
        assert sum(chunk.num_tokens for chunk in chunks) <= scheduler.budget.num_tokens
        for chunk in chunks:
            seq, end = chunk.seq, chunk.start + chunk.num_tokens
            assert seq in scheduler.running
            assert seq.num_computed == chunk.start < end <= len(seq.token_ids)
            assert end <= len(seq.block_table) * BLOCK_SIZE
            is_decode = seq.num_pending == 1
            self.spent[seq.request.share.tenant] += DECODE_COST if is_decode else chunk.num_tokens
        assert self.spent == self.charged, "charged for what was computed, and for nothing else"
        seated = scheduler.running + scheduler.suspended
        assert len(seated) == len(set(seated)) <= scheduler.limits.max_num_seqs
        self._check_line(set(seated))
        refs = Counter(block for seq in seated for block in seq.block_table)
        assert self.blocks._refs == [refs[block] for block in range(self.num_blocks)]
        pins = Counter(s.request.adapter for s in scheduler.running if s.request.adapter)
        assert self.bank.pins() == pins
        assert set(scheduler._held_since) == set(pins)

    def _check_line(self, seated: set[Sequence]) -> None:
        line = self.scheduler.waiting
        here, seats = Counter[Account](), Counter[Account]()
        for seq in self.open:
            for account in line._places[seq]:
                here[account] += 1
                seats[account] += seq in seated
        tenants = list(line._tenants._accounts.values())
        flows = [flow for tenant in tenants for flow in tenant.flows._accounts.values()]
        accounts = cast(list[Account], [*tenants, *flows])
        for owner in accounts:
            assert (owner.num_here, owner.num_seated) == (here[owner], seats[owner])
        in_line = [seq for flow in flows for seq in flow.waiting]
        assert len(in_line) == len(line) == len(self.open) - len(seated)
        assert set(in_line) == self.open - seated
        assert not any(seq.block_table for seq in in_line)

    def _listen_to_charges(self) -> None:
        line = self.scheduler.waiting
        charge = line.charge

        def charged(seq: Sequence, num_tokens: int) -> None:
            cost = DECODE_COST if seq.num_pending == 1 else abs(num_tokens)
            self.charged[seq.request.share.tenant] += cost if num_tokens > 0 else -cost
            charge(seq, num_tokens)

        line.charge = charged  # type: ignore[method-assign]


def test_the_books_are_right_after_every_step_and_everybody_gets_to_an_end() -> None:
    seen = Counter[str]()
    for seed in range(60):
        scheduler = Case(seed).run()
        seen["preempted"] += scheduler.num_preemptions
        seen["suspended"] += scheduler.num_suspensions
        seen["displaced"] += scheduler.num_displacements
    for event in ("preempted", "suspended", "displaced"):
        assert seen[event] > 10, f"hardly ever {event}"
