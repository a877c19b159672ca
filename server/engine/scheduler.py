"""Who runs in the next step, and with how many tokens. No tensors.

One step is one packed batch. Running sequences that wait for a single token come first, then
prompt chunks, then newcomers, all under one token budget, so a long prompt never delays running
streams by more than the budget. A newcomer needs a place among the running, KV blocks for its
first chunk, and its adapter in the bank.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from server.engine.blocks import BlockPool
from server.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    max_num_seqs: int = 32
    max_batched_tokens: int = 512
    max_adapter_wait_s: float = 2.0  # after this, nobody who came later may take a bank place


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


class Scheduler:
    """Waiting and running sequences, first come first served.

    ``pin(key)`` makes an adapter resident and holds it, or returns False if the bank is full of
    adapters in use; ``unpin(key)`` lets it go.
    """

    def __init__(
        self,
        limits: SchedulerLimits,
        blocks: BlockPool,
        pin: Callable[[str], bool],
        unpin: Callable[[str], None],
    ) -> None:
        self.limits = limits
        self.blocks = blocks
        self._pin = pin
        self._unpin = unpin
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # oldest first

    def add(self, seq: Sequence) -> None:
        self.waiting.append(seq)

    def schedule(self, now: float) -> list[Chunk]:
        """Choose the next step's chunks and reserve their KV blocks."""
        budget = self.limits.max_batched_tokens
        chunks: list[Chunk] = []
        num_running = len(self.running)
        # Sequences one token behind are streams that somebody is reading: they go first.
        for seq in sorted(self.running, key=lambda s: s.num_pending > 1):
            if budget == 0:
                break
            if seq not in self.running:  # preempted a moment ago by an older one
                continue
            num_tokens = min(seq.num_pending, budget)
            if self._make_room(seq, num_tokens, chunks):
                chunks.append(self._reserve(seq, num_tokens))
                budget -= num_tokens
        if len(self.running) == num_running:  # nobody preempted: there may be room for newcomers
            self._admit(now, budget, chunks)
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
            self.running.remove(seq)
            self._let_go(seq)
        else:
            self.waiting.remove(seq)

    def _admit(self, now: float, budget: int, chunks: list[Chunk]) -> None:
        is_bank_reserved = False  # an aged request waits for a place: later ones must not take it
        for seq in list(self.waiting):
            if budget == 0 or len(self.running) >= self.limits.max_num_seqs:
                break
            adapter = seq.request.adapter
            if adapter is not None and (is_bank_reserved or not self._pin(adapter)):
                is_bank_reserved |= now - seq.submitted_at > self.limits.max_adapter_wait_s
                continue
            self.blocks.adopt_prefix(seq)
            num_tokens = min(seq.num_pending, budget)
            if not self.blocks.can_extend(seq, num_tokens):
                self._let_go(seq)
                break
            if seq.first_scheduled_at is None:
                seq.first_scheduled_at = now
                seq.num_cached = seq.num_computed
            self.waiting.remove(seq)
            self.running.append(seq)
            chunks.append(self._reserve(seq, num_tokens))
            budget -= num_tokens

    def _reserve(self, seq: Sequence, num_tokens: int) -> Chunk:
        self.blocks.extend(seq, num_tokens)
        return Chunk(seq, seq.num_computed, num_tokens)

    def _make_room(self, seq: Sequence, num_tokens: int, chunks: list[Chunk]) -> bool:
        """Preempt the youngest sequences until ``seq`` can grow; False if it went itself."""
        while not self.blocks.can_extend(seq, num_tokens):
            victim = self.running[-1]
            self._preempt(victim)
            chunks[:] = [c for c in chunks if c.seq is not victim]
            if victim is seq:
                return False
        return True

    def _preempt(self, seq: Sequence) -> None:
        """Back to the head of the queue; its tokens are kept, its K/V computed again later."""
        self.running.remove(seq)
        self._let_go(seq)
        self.waiting.appendleft(seq)

    def _let_go(self, seq: Sequence) -> None:
        self.blocks.release(seq)
        if seq.request.adapter is not None:
            self._unpin(seq.request.adapter)


def is_end_token(seq: Sequence, eos_token_ids: frozenset[int]) -> bool:
    """Whether the newest token ends the answer by itself; its text is not part of the answer."""
    sampling = seq.request.sampling
    if seq.num_generated < sampling.min_tokens:
        return False
    token = seq.token_ids[-1]
    is_eos = token in eos_token_ids and not sampling.ignore_eos
    return is_eos or token in sampling.stop_token_ids
