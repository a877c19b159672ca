"""Who runs in the next step, and with how many tokens. No tensors.

One step is one packed batch. Running sequences that wait for a single token come first, then
prompt chunks, then newcomers, all under one token budget, so a long prompt never delays running
streams by more than the budget. A newcomer needs a seat among the running, KV blocks for its first
chunk, and its adapter's place in the bank.

When more adapters are wanted than the bank has places, the places go round: who waits for its first
token takes the place that has been held longest, and the sequences that held it are suspended. They
keep seat and K/V, and take a place back when one is free or after a bounded wait.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from server.engine.blocks import BlockPool
from server.engine.budget import StepBudget
from server.engine.sequence import Sequence

PREFETCH_DEPTH = 32  # waiting sequences whose adapters are looked after


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
    """Waiting and running sequences, first come first served."""

    def __init__(self, limits: SchedulerLimits, blocks: BlockPool, adapters: AdapterPlaces) -> None:
        self.limits = limits
        self.blocks = blocks
        self.budget = StepBudget(limits.max_batched_tokens)
        self._adapters = adapters
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.suspended: list[Sequence] = []  # without a place for their adapter; longest first
        self.failed: list[tuple[Sequence, Exception]] = []  # no adapter; to be ended
        self.num_preemptions = 0  # for lack of KV blocks or of memory
        self.num_suspensions = 0  # for another adapter's turn
        self._num_added = 0
        self._held_since: dict[str, float] = {}  # adapters of running sequences

    def add(self, seq: Sequence) -> None:
        self._num_added += 1
        seq.number = self._num_added
        self.waiting.append(seq)

    @property
    def has_unscheduled(self) -> bool:
        return bool(self.waiting or self.suspended)

    def schedule(self, now: float) -> list[Chunk]:
        """Choose the next step's chunks and reserve their KV blocks."""
        if not self._take_turns(now):
            self._resume(now)
        budget = self.budget.num_tokens
        chunks: list[Chunk] = []
        num_preemptions = self.num_preemptions
        # Sequences one token behind are streams that somebody is reading: they go first.
        for seq in sorted(self.running, key=lambda s: (s.num_pending > 1, s.number)):
            if budget == 0:
                break
            if seq not in self.running:  # preempted a moment ago by an older one
                continue
            num_tokens = min(seq.num_pending, budget)
            if self._make_room(seq, num_tokens, chunks):
                chunks.append(self._reserve(seq, num_tokens))
                budget -= num_tokens
        if self.num_preemptions == num_preemptions:  # there may be room for newcomers
            self._admit(now, budget, chunks)
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
        if seq in self.running:
            self._leave_running(seq)
        elif seq in self.suspended:
            self.suspended.remove(seq)
        else:
            self.waiting.remove(seq)
        self.blocks.release(seq)

    def shrink(self, num_tokens: int) -> None:
        """Memory ran out at ``num_tokens`` in one step: fewer from now on, the youngest wait."""
        self.budget.shrink(num_tokens)
        while len(self.running) > self.budget.num_tokens:
            self._preempt(max(self.running, key=lambda s: s.number))

    def _admit(self, now: float, budget: int, chunks: list[Chunk]) -> None:
        for seq in list(self.waiting):
            if budget == 0 or self._num_free_seats() <= 0:
                break
            if not self._pin(seq, now):
                continue
            self.blocks.adopt_prefix(seq)
            num_tokens = min(seq.num_pending, budget)
            if not self.blocks.can_extend(seq, num_tokens):
                self.blocks.release(seq)
                self._unpin(seq)
                break
            if seq.first_scheduled_at is None:
                seq.first_scheduled_at = now
                seq.num_cached = seq.num_computed
            self.waiting.remove(seq)
            self.running.append(seq)
            chunks.append(self._reserve(seq, num_tokens))
            budget -= num_tokens

    def _num_free_seats(self) -> int:
        max_seats = min(self.limits.max_num_seqs, self.budget.num_tokens)
        return max_seats - len(self.running) - len(self.suspended)

    def _take_turns(self, now: float) -> bool:
        """Suspend the adapter that has held its place longest, if the first in line needs one."""
        if not self._held_since:
            return False
        seq = self._first_due(now)
        if seq is None:
            return False
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
                else:  # first in line now, or somebody else would take the place
                    self.waiting.remove(seq)
                    self.waiting.appendleft(seq)
                return True
        return False

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
        first = next((s for s in self.waiting if self._lacks_place(s)), None)
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
        wanted = (seq.request.adapter for seq in islice(self.waiting, PREFETCH_DEPTH))
        keys = [key for key in dict.fromkeys(wanted) if key is not None]
        for key in keys:
            if self._adapters.prefetch(key, frozenset(keys)):
                break

    def _reserve(self, seq: Sequence, num_tokens: int) -> Chunk:
        self.blocks.extend(seq, num_tokens)
        return Chunk(seq, seq.num_computed, num_tokens)

    def _make_room(self, seq: Sequence, num_tokens: int, chunks: list[Chunk]) -> bool:
        """Preempt others until ``seq`` can grow, the youngest first; False if it went itself."""
        while not self.blocks.can_extend(seq, num_tokens):
            victim = max(self.suspended + self.running, key=lambda s: s.number)
            self._preempt(victim)
            chunks[:] = [c for c in chunks if c.seq is not victim]
            if victim is seq:
                return False
        return True

    def _preempt(self, seq: Sequence) -> None:
        """Back to the head of the queue; its tokens are kept, its K/V computed again later."""
        if seq in self.suspended:
            self.suspended.remove(seq)
        else:
            self._leave_running(seq)
        self.blocks.release(seq)
        self.waiting.appendleft(seq)
        self.num_preemptions += 1

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
