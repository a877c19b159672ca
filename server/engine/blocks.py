"""Bookkeeping of KV cache blocks: reference counts and the prefix cache. No tensors.

A block holds the keys and values of ``block_size`` consecutive tokens of every layer. Blocks
nobody references keep their content until they are needed again, oldest first, so a later prompt
with the same beginning (and the same adapter) finds it. Structure after vLLM's PagedAttention
(Kwon et al., 2023).
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable

from server.engine.sequence import Sequence


class BlockPool:
    """``num_blocks`` blocks of ``block_size`` tokens, shared by all sequences.

    Without ``shares_prefixes`` every sequence computes all of its tokens.
    """

    def __init__(self, num_blocks: int, block_size: int, shares_prefixes: bool = True) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._shares_prefixes = shares_prefixes
        self._refs = [0] * num_blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._hash_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        """Blocks without a reference, cached content or not."""
        return len(self._free)

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def adopt_prefix(self, seq: Sequence) -> None:
        """Give an empty sequence the longest cached beginning of its tokens.

        At least one token is left to compute, because sampling needs its logits.
        """
        # What is to be scored has to go through the model.
        if seq.is_unscored or not self._shares_prefixes:
            return
        candidates = seq.hash_blocks(self.block_size, (len(seq.token_ids) - 1) // self.block_size)
        for digest in candidates:
            block = self._block_of.get(digest)
            if block is None:
                break
            self._take(block)
            seq.block_table.append(block)
        seq.num_published = len(seq.block_table)
        seq.num_computed = seq.num_published * self.block_size

    def can_extend(self, seq: Sequence, num_tokens: int, without: Iterable[Sequence] = ()) -> bool:
        """Whether there are blocks for that, or would be if those in ``without`` had gone."""
        missing = self._missing(seq, num_tokens) - len(self._free)
        if missing <= 0 or not without:
            return missing <= 0
        refs = Counter(block for other in without for block in other.block_table)
        return missing <= sum(self._refs[block] == num for block, num in refs.items())

    def extend(self, seq: Sequence, num_tokens: int) -> None:
        """Grow the block table to hold ``num_tokens`` more computed tokens."""
        for _ in range(self._missing(seq, num_tokens)):
            block, _ = self._free.popitem(last=False)
            self._forget(block)
            self._refs[block] = 1
            seq.block_table.append(block)

    def publish_full(self, seq: Sequence) -> None:
        """Make the sequence's newly filled blocks findable by later prompts."""
        num_full = seq.num_computed // self.block_size
        if num_full == seq.num_published or not self._shares_prefixes:
            return
        digests = seq.hash_blocks(self.block_size, num_full)
        for i in range(seq.num_published, num_full):
            block, digest = seq.block_table[i], digests[i]
            if digest not in self._block_of and block not in self._hash_of:
                self._block_of[digest] = block
                self._hash_of[block] = digest
        seq.num_published = num_full

    def withdraw(self, seq: Sequence) -> list[int]:
        """The blocks that only this sequence uses; nobody will find their content any more.

        For a sequence that failed: what it wrote is not to be trusted, what it shares is.
        """
        own = [block for block in seq.block_table if self._refs[block] == 1]
        for block in own:
            self._forget(block)
        return own

    def release(self, seq: Sequence) -> None:
        """Drop the sequence's references; its tail becomes the first to be reused."""
        for block in reversed(seq.block_table):
            self._refs[block] -= 1
            if self._refs[block] == 0:
                self._free[block] = None
        seq.block_table.clear()
        seq.num_computed = 0
        seq.num_published = 0

    def _missing(self, seq: Sequence, num_tokens: int) -> int:
        return self.blocks_for(seq.num_computed + num_tokens) - len(seq.block_table)

    def _forget(self, block: int) -> None:
        digest = self._hash_of.pop(block, None)
        if digest is not None:
            del self._block_of[digest]

    def _take(self, block: int) -> None:
        if self._refs[block] == 0:
            del self._free[block]
        self._refs[block] += 1
