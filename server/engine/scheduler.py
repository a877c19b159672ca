"""Who runs in the next step, and with how many tokens. No tensors.

One step is one packed batch. Running sequences that wait for a single token come first, then
prompts, begun ones and newcomers in fair order, all under one token budget, so a long prompt never
delays running streams by more than the budget. A newcomer needs a seat among the running, KV blocks
for its first chunk, and its adapter's place in the bank. A flow (`fair_share`) that has less than
its share of seats or blocks takes them from one that has more; who loses them keeps its tokens, and
mostly finds its K/V again in the prefix cache.

When more adapters are wanted than the bank has places, the places go round: who waits for its first
token takes the place that has been held longest, and the sequences that held it are suspended. They
keep seat and K/V, and take a place back when one is free or after a bounded wait.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from server.engine.blocks import BlockPool
from server.engine.budget import StepBudget
from server.engine.fair_share import FairLine, Flow, Holdings, Tenant
from server.engine.sequence import Sequence

PREFETCH_DEPTH = 32  # waiting adapters that are looked after
OTHERS_PART = 0.125  # of a step, for prompts of who was given more, while somebody was given less


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    max_num_seqs: int = 32
    max_batched_tokens: int = 512
    max_suspension_s: float = 2.0  # after this a suspended sequence takes a place back


@dataclass(frozen=True, slots=True)
class Chunk:
    """``num_tokens`` tokens of one sequence, from position ``start`` on.

    ``is_last`` chunks reach the sequence's newest token: their final logits are sampled.
    """

    seq: Sequence
    start: int
    num_tokens: int

    @property
    def is_last(self) -> bool:
        return self.start + self.num_tokens == len(self.seq.token_ids)

    @property
    def is_decode(self) -> bool:
        return self.num_tokens == 1


class AdapterPlaces(Protocol):
    """The device bank as the scheduler sees it; `residency.AdapterResidency` in production."""

    def pin(self, key: str) -> bool:
        """Make an adapter resident and hold it; False if that is not possible in this step.

        Whatever the bank's own write raises comes through, and nothing is held.
        """

    def unpin(self, key: str) -> None: ...

    def can_place(self, key: str, giving_up: frozenset[str] = frozenset()) -> bool:
        """Whether there is a place now, or would be if nobody held those in ``giving_up``."""

    def prefetch(self, key: str, keep: frozenset[str]) -> bool:
        """Use a spare place and a spare moment for a later `pin`, but evict none of ``keep``.

        True if that was this step's last spare moment.
        """


class Scheduler:
    """Waiting and running sequences."""

    def __init__(self, limits: SchedulerLimits, blocks: BlockPool, adapters: AdapterPlaces) -> None:
        self.limits = limits
        self.blocks = blocks
        self.budget = StepBudget(limits.max_batched_tokens)
        self._adapters = adapters
        self.waiting = FairLine()
        self.running: list[Sequence] = []
        self.suspended: list[Sequence] = []  # without a place for their adapter; longest first
        self.failed: list[tuple[Sequence, Exception]] = []  # no adapter; to be ended
        self.num_preemptions = 0  # for lack of KV blocks or of memory
        self.num_suspensions = 0  # for another adapter's turn
        self.num_displacements = 0  # for a flow below its share
        self._num_added = 0
        self._seats: Holdings | None = None  # who has how many, until that changes
        self._held_since: dict[str, float] = {}  # adapters of running sequences

    def add(self, seq: Sequence) -> None:
        self._num_added += 1
        seq.number = self._num_added
        self.waiting.add(seq)

    @property
    def has_unscheduled(self) -> bool:
        return bool(self.waiting or self.suspended)

    def schedule(self, now: float) -> list[Chunk]:
        """Choose the next step's chunks and reserve their KV blocks."""
        self._seats = None
        due = self._take_turns(now)
        if due is None:
            self._resume(now)
        chunks: list[Chunk] = []
        num_preemptions = self.num_preemptions
        behind = self.waiting.tenant_behind()
        # Sequences one token behind are streams that somebody is reading: they go first.
        streams = [seq for seq in self.running if seq.num_pending == 1]
        for seq in sorted(streams, key=lambda s: s.number):
            self._go_on(seq, self.budget.num_tokens - len(chunks), chunks)
        prompts = {seq for seq in self.running if seq.num_pending > 1}
        passed: set[Flow] = set()
        for seq in self.waiting.in_turn(prompts, passed, first=due):
            most = self._most_for(seq, behind, chunks)
            if seq in prompts:
                self._go_on(seq, most, chunks)
            elif (
                most == 0
                or self.num_preemptions > num_preemptions
                or not self._admit(seq, most, now, chunks)
            ):
                passed.add(self.waiting.flow_of(seq))
        self._prefetch()
        # Decode rows first: the runner handles them with one attention call.
        return sorted(chunks, key=lambda c: not c.is_decode)

    def update(self, chunk: Chunk, token_id: int | None) -> None:
        """Record that a chunk's K/V are in the cache, and the token sampled from it."""
        chunk.seq.num_computed = chunk.start + chunk.num_tokens
        self.blocks.publish_full(chunk.seq)
        if token_id is not None:
            chunk.seq.token_ids.append(token_id)

    def finish(self, seq: Sequence) -> None:
        """Forget a sequence, wherever it is, and free all it holds."""
        is_seated = seq in self.running or seq in self.suspended
        if is_seated:
            self._give_up_seat(seq)
        self.waiting.leave(seq, is_seated=is_seated)
        self.blocks.release(seq)

    def shrink(self, num_tokens: int) -> None:
        """Memory ran out at ``num_tokens`` in one step: fewer from now on, the youngest wait."""
        self.budget.shrink(num_tokens)
        while len(self.running) > self.budget.num_tokens:
            self._preempt(max(self.running, key=lambda s: s.number))

    def _num_left(self, chunks: list[Chunk]) -> int:
        """Tokens that still fit into this step."""
        return self.budget.num_tokens - sum(chunk.num_tokens for chunk in chunks)

    def _most_for(self, seq: Sequence, behind: Tenant | None, chunks: list[Chunk]) -> int:
        """Prompt tokens that ``seq`` may have of this step.

        Whoever is not of the tenant ``behind`` gets at most a part of it, all of them together: a
        new request of that tenant has to wait for the step's end.
        """
        most = self._num_left(chunks)
        if self.waiting.tenant_of(seq) is behind:
            return most
        others = max(1, int(OTHERS_PART * self.budget.num_tokens))
        num_prompt = sum(chunk.num_tokens for chunk in chunks if not chunk.is_decode)
        return min(most, max(0, others - num_prompt))

    def _go_on(self, seq: Sequence, most: int, chunks: list[Chunk]) -> None:
        """Give a running sequence its next tokens, unless it was preempted a moment ago."""
        num_tokens = min(seq.num_pending, most)
        if num_tokens and seq in self.running and self._make_room(seq, num_tokens, chunks):
            self._reserve(seq, num_tokens, chunks)

    def _admit(self, seq: Sequence, most: int, now: float, chunks: list[Chunk]) -> bool:
        has_seat = self._num_free_seats() > 0
        loser = None if has_seat else self._who_gives_seat(seq)
        if (not has_seat and loser is None) or not self._pin(seq, now):
            return False
        if loser is not None:
            self._displace(loser, chunks)
        self.blocks.adopt_prefix(seq)
        num_tokens = min(seq.num_pending, most)
        while not self.blocks.can_extend(seq, num_tokens):
            loser = self._who_gives_blocks(seq, num_tokens)
            if loser is None:
                self.blocks.release(seq)
                self._unpin(seq)
                return False
            self._displace(loser, chunks)
        if seq.first_scheduled_at is None:
            seq.first_scheduled_at = now
            seq.num_cached = seq.num_computed
        self.waiting.seat(seq)
        self._seats = None
        self.running.append(seq)
        self._reserve(seq, num_tokens, chunks)
        return True

    def _who_gives_seat(self, newcomer: Sequence) -> Sequence | None:
        if self._seats is None:
            one_each = dict.fromkeys(self._seated(), 1)
            self._seats = self.waiting.holdings(one_each, self._max_seats())
        return self._who_gives(newcomer, 1, self._seats)

    def _who_gives_blocks(self, newcomer: Sequence, num_tokens: int) -> Sequence | None:
        wanted = self.blocks.blocks_for(num_tokens)
        return self._who_gives(newcomer, wanted, self._held_blocks())

    def _who_gives(self, newcomer: Sequence, wanted: int, held: Holdings) -> Sequence | None:
        """Who could spare ``wanted``: of another tenant if the newcomer's has less than its share,
        else of another of its adapters if that is so between them."""
        givers: list[Sequence] = []
        if held.over_tenant(newcomer) + wanted <= 0:
            givers = [s for s in self._seated() if held.over_tenant(s) >= wanted]
        elif held.over_flow(newcomer) + wanted <= 0:
            tenant = self.waiting.tenant_of(newcomer)
            mine = [s for s in self._seated() if self.waiting.tenant_of(s) is tenant]
            givers = [s for s in mine if held.over_flow(s) >= wanted]
        return max(givers, key=lambda s: (held.over_flow(s) > 0, s.number), default=None)

    def _held_blocks(self) -> Holdings:
        amounts = {seq: len(seq.block_table) for seq in self._seated()}
        return self.waiting.holdings(amounts, self.blocks.num_blocks)

    def _displace(self, seq: Sequence, chunks: list[Chunk]) -> None:
        self._back_in_line(seq)
        self.num_displacements += 1
        chunks[:] = [c for c in chunks if c.seq is not seq]

    def _seated(self) -> list[Sequence]:
        return self.suspended + self.running

    def _num_free_seats(self) -> int:
        return self._max_seats() - len(self.running) - len(self.suspended)

    def _max_seats(self) -> int:
        return min(self.limits.max_num_seqs, self.budget.num_tokens)

    def _take_turns(self, now: float) -> Sequence | None:
        """Suspend the adapter that has held its place longest, if the first in line needs one.

        Who that was done for; it must be admitted first, or somebody else would take the place.
        """
        if not self._held_since:
            return None
        seq = self._first_due(now)
        if seq is None:
            return None
        assert seq.request.adapter is not None
        # Who still reads its prompt has had nothing of its place yet.
        reading = {s.request.adapter for s in self.running if s.num_pending > 1}
        holders = [key for key in self._held_since if key not in reading]  # longest held first
        for num in range(1, len(holders) + 1):
            going = frozenset(holders[:num])
            if self._adapters.can_place(seq.request.adapter, going):
                self._suspend(going, now)
                if seq in self.suspended:
                    self._resume_one(seq, now)
                return seq
        return None

    def _first_due(self, now: float) -> Sequence | None:
        """Who lacks nothing but a place in the bank, and may take somebody's."""
        for seq in self.suspended:
            since = seq.suspended_at
            assert since is not None
            if now - since >= self.limits.max_suspension_s and self._lacks_place(seq):
                return seq
        budget = self.budget.num_tokens
        if self._num_free_seats() <= 0 or sum(s.num_pending for s in self.running) >= budget:
            return None
        first = next((seq for seq in self.waiting.heads() if self._lacks_place(seq)), None)
        if first is None or not self.blocks.can_extend(first, min(first.num_pending, budget)):
            return None
        return first

    def _lacks_place(self, seq: Sequence) -> bool:
        key = seq.request.adapter
        return key is not None and key not in self._held_since and not self._adapters.can_place(key)

    def _suspend(self, adapters: frozenset[str], now: float) -> None:
        for seq in [s for s in self.running if s.request.adapter in adapters]:
            self._leave_running(seq)
            seq.suspended_at = now
            self.suspended.append(seq)
            self.num_suspensions += 1

    def _resume(self, now: float) -> None:
        for seq in list(self.suspended):
            if len(self.running) < self.budget.num_tokens:
                self._resume_one(seq, now)

    def _resume_one(self, seq: Sequence, now: float) -> None:
        if self._pin(seq, now):
            self.suspended.remove(seq)
            self.running.append(seq)

    def _prefetch(self) -> None:
        """Bring adapters of waiting sequences to places that nobody wants."""
        wanted = dict.fromkeys(seq.request.adapter for seq in self.waiting.heads())
        keys = [key for key in wanted if key is not None][:PREFETCH_DEPTH]
        for key in keys:
            if self._adapters.prefetch(key, frozenset(keys)):
                break

    def _reserve(self, seq: Sequence, num_tokens: int, chunks: list[Chunk]) -> None:
        self.blocks.extend(seq, num_tokens)
        self.waiting.charge(seq, num_tokens)
        chunks.append(Chunk(seq, seq.num_computed, num_tokens))

    def _make_room(self, seq: Sequence, num_tokens: int, chunks: list[Chunk]) -> bool:
        """Preempt others until ``seq`` can grow; False if it went itself.

        First tenants and flows that hold more than their shares, and of those the youngest.
        """
        while not self.blocks.can_extend(seq, num_tokens):
            held = self._held_blocks()
            victim = max(
                self._seated(),
                key=lambda s: (held.over_tenant(s) > 0, held.over_flow(s) > 0, s.number),
            )
            self._preempt(victim)
            chunks[:] = [c for c in chunks if c.seq is not victim]
            if victim is seq:
                return False
        return True

    def _preempt(self, seq: Sequence) -> None:
        self._back_in_line(seq)
        self.num_preemptions += 1

    def _back_in_line(self, seq: Sequence) -> None:
        """To the head of its flow; its tokens are kept, its K/V computed again later."""
        self._give_up_seat(seq)
        self.blocks.release(seq)
        self.waiting.put_back(seq)
        self._seats = None

    def _give_up_seat(self, seq: Sequence) -> None:
        if seq in self.suspended:
            self.suspended.remove(seq)
        else:
            self._leave_running(seq)

    def _leave_running(self, seq: Sequence) -> None:
        self.running.remove(seq)
        self._unpin(seq)

    def _pin(self, seq: Sequence, now: float) -> bool:
        key = seq.request.adapter
        if key is None:
            return True
        try:
            is_held = self._adapters.pin(key)
        except Exception as error:  # whatever the write into the bank may raise
            # An answer under way waits for better times while others may still bring them.
            if seq not in self.suspended or not self.running:
                self.failed.append((seq, error))
            return False
        if is_held:
            self._held_since.setdefault(key, now)
        return is_held

    def _unpin(self, seq: Sequence) -> None:
        key = seq.request.adapter
        if key is not None:
            self._adapters.unpin(key)
            if all(s.request.adapter != key for s in self.running):
                self._held_since.pop(key, None)


def is_end_token(seq: Sequence, eos_token_ids: frozenset[int]) -> bool:
    """Whether the newest token ends the answer by itself; its text is not part of the answer."""
    sampling = seq.request.sampling
    if seq.num_generated < sampling.min_tokens:
        return False
    token = seq.token_ids[-1]
    is_eos = token in eos_token_ids and not sampling.ignore_eos
    return is_eos or token in sampling.stop_token_ids
