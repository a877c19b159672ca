"""Who runs in the next step, and with how many tokens. No tensors.

One step is one packed batch. Running sequences that wait for a single token come first, then
prompts, begun ones and newcomers in fair order, all under one token budget, so a long prompt never
delays running streams by more than the budget. A newcomer needs a seat among the running, KV blocks
for its first chunk, and its adapter's place in the bank. A flow (`fair_share`) that has less than
its share of seats or blocks takes them from one that has more; who loses them keeps its tokens,
mostly finds its K/V again in the prefix cache, and comes back before its tenant's newcomers. Who
came first of all loses nothing to others: somebody always gets to an end.

When more adapters are wanted than the bank has places, the places go round: who waits for its first
token takes the place that has been held longest, sooner one of a tenant that was given more, and
the sequences that held it are suspended. They keep seat and K/V, and take a place back when one is
free or after a bounded wait.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from typing import Protocol

from server.engine.blocks import BlockPool
from server.engine.budget import StepBudget, StepPlan
from server.engine.fair_share import FairLine, Holdings, Tenant
from server.engine.sequence import Sequence

PREFETCH_DEPTH = 32  # waiting adapters that are looked after
MAX_SCORED = 32  # prompt tokens in a step whose logits are looked at, which take time and memory
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

    @property
    def scored(self) -> range:
        """Positions whose logits say how likely the prompt's next token is, where that is asked."""
        if not self.seq.is_unscored:
            return range(0)
        return range(self.start, min(self.start + self.num_tokens, self.seq.num_prompt - 1))


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
        heads = self.waiting.heads()
        due = self._take_turns(heads, now)
        if due is None:
            self._resume(now)
        plan = StepPlan()
        behind = self.waiting.tenant_behind()
        # Sequences one token behind are streams that somebody is reading: they go first.
        streams = [seq for seq in self.running if seq.num_pending == 1]
        for seq in sorted(streams, key=lambda s: s.number):
            self._go_on(seq, self.budget.num_tokens - plan.num_tokens, plan)
        prompts = {seq for seq in self.running if seq.num_pending > 1}
        passed = {self.waiting.flow_of(seq) for seq in heads if not self._may_sit(seq)}
        for seq in self.waiting.in_turn(prompts, passed, first=due):
            if plan.num_tokens == self.budget.num_tokens:
                break
            most = self._most_for(seq, behind, plan)
            if seq in prompts:
                self._go_on(seq, most, plan)
            elif most == 0 or plan.is_closed or not self._admit(seq, most, now, plan):
                passed.add(self.waiting.flow_of(seq))
        self._prefetch(heads)
        chunks = [Chunk(seq, seq.num_computed, num) for seq, num in plan.tokens.items()]
        # Decode rows first: the runner handles them with one attention call.
        return sorted(chunks, key=lambda chunk: not chunk.is_decode)

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
            self._back_in_line(max(self.running, key=lambda s: s.number))
            self.num_preemptions += 1

    def _most_for(self, seq: Sequence, behind: Tenant | None, plan: StepPlan) -> int:
        """Prompt tokens that ``seq`` may have of this step.

        Whoever is not of the tenant ``behind`` gets at most a part of it, all of them together: a
        new request of that tenant has to wait for the step's end.
        """
        most = self.budget.num_tokens - plan.num_tokens
        if seq.is_unscored:
            most = min(most, MAX_SCORED - plan.num_scored)
        if self.waiting.tenant_of(seq) is behind:
            return most
        others = max(1, int(OTHERS_PART * self.budget.num_tokens))
        return min(most, max(0, others - plan.num_prompt))

    def _go_on(self, seq: Sequence, most: int, plan: StepPlan) -> None:
        """Give a running sequence its next tokens, unless it was preempted a moment ago."""
        num_tokens = min(seq.num_pending, most)
        if num_tokens and seq in self.running and self._make_room(seq, num_tokens, plan):
            self._reserve(seq, num_tokens, plan)

    def _admit(self, seq: Sequence, most: int, now: float, plan: StepPlan) -> bool:
        if not self._may_sit(seq) or not self._pin(seq):
            return False
        self.blocks.adopt_prefix(seq)
        num_tokens = min(seq.num_pending, most)
        losers = self._losers(seq, num_tokens)
        if losers is None:
            self.blocks.release(seq)
            self._unpin(seq)
            plan.is_closed = True
            return False
        for loser in losers:
            self._send_back(loser, plan)
        self.num_displacements += len(losers)
        if seq.first_scheduled_at is None:
            seq.first_scheduled_at = now
            seq.num_cached = seq.num_computed
        self.waiting.seat(seq)
        self._seats = None
        self._enter_running(seq, now)
        self._reserve(seq, num_tokens, plan)
        return True

    def _may_sit(self, newcomer: Sequence) -> bool:
        return self._num_free_seats() > 0 or self._held_seats().giver(newcomer, 1) is not None

    def _losers(self, newcomer: Sequence, num_tokens: int) -> list[Sequence] | None:
        """Who goes, so that a newcomer has a seat and blocks; None if they are not enough."""
        losers: list[Sequence] = []
        if self._num_free_seats() <= 0:
            giver = self._held_seats().giver(newcomer, 1)
            if giver is None:
                return None
            losers.append(giver)
        while not self.blocks.can_extend(newcomer, num_tokens, losers):
            wanted = self.blocks.blocks_for(num_tokens)
            giver = self._held_blocks(losers).giver(newcomer, wanted)
            if giver is None:
                return None
            losers.append(giver)
        return losers

    def _held_seats(self) -> Holdings:
        if self._seats is None:
            one_each = dict.fromkeys(self._seated(), 1)
            self._seats = self.waiting.holdings(one_each, self._max_seats())
        return self._seats

    def _held_blocks(self, losers: Container[Sequence] = ()) -> Holdings:
        amounts = {seq: len(seq.block_table) for seq in self._seated() if seq not in losers}
        return self.waiting.holdings(amounts, self.blocks.num_blocks)

    def _seated(self) -> list[Sequence]:
        return self.suspended + self.running

    def _num_free_seats(self) -> int:
        return self._max_seats() - len(self.running) - len(self.suspended)

    def _max_seats(self) -> int:
        return min(self.limits.max_num_seqs, self.budget.num_tokens)

    def _take_turns(self, heads: list[Sequence], now: float) -> Sequence | None:
        """Suspend the adapter that has held its place longest, if the first in line needs one.

        Who that was done for; it must be admitted first, or somebody else would take the place.
        """
        if not self._held_since:
            return None
        seq = self._first_due(heads, now)
        if seq is None:
            return None
        assert seq.request.adapter is not None
        holders = self._holders_for(seq, now)
        for num in range(1, len(holders) + 1):
            going = frozenset(holders[:num])
            if self._adapters.can_place(seq.request.adapter, going):
                self._suspend(going, now)
                if seq in self.suspended:
                    self._resume_one(seq, now)
                return seq
        return None

    def _first_due(self, heads: list[Sequence], now: float) -> Sequence | None:
        """Who lacks nothing but a place in the bank, and may take somebody's."""
        for seq in self.suspended:
            since = seq.suspended_at
            assert since is not None
            if now - since >= self.limits.max_suspension_s and self._lacks_place(seq):
                return seq
        has_seat, seats = self._num_free_seats() > 0, self._held_seats()
        sitting = (seq for seq in heads if has_seat or seats.over_tenant(seq) + 1 <= 0)
        first = next((seq for seq in sitting if self._lacks_place(seq)), None)
        if first is None:
            return None
        ahead = [s for s in self.running if s.num_pending == 1 or self.waiting.is_before(s, first)]
        budget = self.budget.num_tokens
        if sum(s.num_pending for s in ahead) >= budget:
            return None
        self.blocks.adopt_prefix(first)  # that takes free blocks, too
        can_enter = self._losers(first, min(first.num_pending, budget)) is not None
        self.blocks.release(first)
        return first if can_enter else None

    def _holders_for(self, due: Sequence, now: float) -> list[str]:
        """Adapters that may lose their places to ``due``, in that order: longest held first."""
        mine, since = self.waiting.tenant_of(due), self._held_since
        kept: set[str | None] = set()  # for as long as a suspension may take
        for seq in self.running:
            tenant = self.waiting.tenant_of(seq)
            # Who still reads its prompt has had nothing of its place yet.
            if seq.num_pending > 1 if tenant is mine else tenant.served < mine.served:
                kept.add(seq.request.adapter)
        longest_s = self.limits.max_suspension_s
        late = [key for key in since if key in kept and now - since[key] >= longest_s]
        return [key for key in since if key not in kept] + late

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
        if self._pin(seq):
            self.suspended.remove(seq)
            self._enter_running(seq, now)

    def _enter_running(self, seq: Sequence, now: float) -> None:
        self.running.append(seq)
        if seq.request.adapter is not None:
            self._held_since.setdefault(seq.request.adapter, now)

    def _prefetch(self, heads: list[Sequence]) -> None:
        """Bring adapters of waiting sequences to places that nobody wants."""
        wanted = dict.fromkeys(seq.request.adapter for seq in heads)
        keys = [key for key in wanted if key is not None][:PREFETCH_DEPTH]
        for key in keys:
            if self._adapters.prefetch(key, frozenset(keys)):
                break

    def _reserve(self, seq: Sequence, num_tokens: int, plan: StepPlan) -> None:
        self.blocks.extend(seq, num_tokens)
        self.waiting.charge(seq, num_tokens)
        plan.give(seq, num_tokens)

    def _make_room(self, seq: Sequence, num_tokens: int, plan: StepPlan) -> bool:
        """Preempt others until ``seq`` can grow; False if it went itself."""
        while not self.blocks.can_extend(seq, num_tokens):
            victim = self._held_blocks().loser() or seq
            self._send_back(victim, plan)
            self.num_preemptions += 1
            plan.is_closed = True
            if victim is seq:
                return False
        return True

    def _send_back(self, seq: Sequence, plan: StepPlan) -> None:
        if num_tokens := plan.take_back(seq):
            self.waiting.charge(seq, -num_tokens)
        self._back_in_line(seq)

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

    def _pin(self, seq: Sequence) -> bool:
        key = seq.request.adapter
        if key is None:
            return True
        try:
            return self._adapters.pin(key)
        except Exception as error:  # whatever the write into the bank may raise
            # An answer under way waits for better times while others may still bring them.
            if seq not in self.suspended or not self.running:
                self.failed.append((seq, error))
            return False

    def _unpin(self, seq: Sequence) -> None:
        key = seq.request.adapter
        if key is not None:
            self._adapters.unpin(key)
            if all(s.request.adapter != key for s in self.running):
                self._held_since.pop(key, None)
