"""The mutable state of one accepted request inside the engine thread. No torch."""

from __future__ import annotations

import secrets
from array import array
from dataclasses import dataclass, field
from hashlib import blake2b

from server.engine.grammar import GrammarState
from server.engine.output import OutputText
from server.engine.request import GenerationRequest, Timing, TokenLogprob


@dataclass(slots=True, eq=False)
class Sequence:
    """Prompt plus generated tokens, and how far the KV cache has followed them."""

    request: GenerationRequest
    output: OutputText
    submitted_at: float
    token_ids: list[int] = field(init=False)
    seed: int = field(init=False)
    num_computed: int = 0  # tokens whose K/V lie in the cache; set by Scheduler.update
    num_cached: int = 0  # of those, found in the prefix cache; set at admission
    block_table: list[int] = field(default_factory=list)  # set by BlockPool
    num_published: int = 0  # full blocks already offered to the prefix cache; set by BlockPool
    block_hashes: list[bytes] = field(default_factory=list)  # of full blocks, grown lazily
    grammar: GrammarState | None = field(init=False)
    is_thinking: bool = field(init=False)
    num_thinking: int = 0  # generated tokens up to the end of the thoughts, the marks included
    prompt_logprobs: dict[int, TokenLogprob] = field(default_factory=dict)  # by position
    number: int = 0  # in order of arrival; set by Scheduler
    suspended_at: float | None = None  # last, for another adapter's turn; set by Scheduler
    first_scheduled_at: float | None = None
    first_token_at: float | None = None

    def __post_init__(self) -> None:
        self.token_ids = list(self.request.prompt_ids)
        sampling = self.request.sampling
        self.seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        self.grammar = None if sampling.grammar is None else sampling.grammar.start()
        self.is_thinking = sampling.thinking is not None and sampling.thinking.is_open

    @property
    def num_prompt(self) -> int:
        return len(self.request.prompt_ids)

    @property
    def num_generated(self) -> int:
        return len(self.token_ids) - self.num_prompt

    @property
    def num_pending(self) -> int:
        """Tokens that still have to go through the model before the next one can be sampled."""
        return len(self.token_ids) - self.num_computed

    @property
    def is_unscored(self) -> bool:
        """Log-probabilities of its prompt are wanted, and some are missing."""
        wanted = self.request.sampling.prompt_logprobs is not None
        return wanted and len(self.prompt_logprobs) < self.num_prompt - 1

    @property
    def must_end_thinking(self) -> bool:
        """The thoughts have used up their budget: the next token is their end."""
        thinking = self.request.sampling.thinking
        if not self.is_thinking or thinking is None or thinking.budget is None:
            return False
        return self.num_thinking - (not thinking.is_open) >= thinking.budget

    def follow(self, token_id: int) -> None:
        """The newest token moves thoughts and grammar on. Raises GrammarTooComplex."""
        thinking = self.request.sampling.thinking
        if thinking is not None and token_id == thinking.start_id and self.num_generated == 1:
            self.is_thinking = True
        if self.is_thinking:
            assert thinking is not None
            self.num_thinking += 1
            self.is_thinking = token_id != thinking.end_id
        elif self.grammar is not None:
            self.grammar.advance(token_id)

    def uniform(self) -> float:
        """The next draw from [0, 1): a pure function of the seed and the position.

        Being stateless, it gives the same token again after a preemption or a repeated step. 48
        bits leave room for rounding: a sum of probabilities times the draw stays below the sum.
        """
        key = f"{self.seed}:{self.num_generated}".encode()
        return int.from_bytes(blake2b(key, digest_size=6).digest(), "big") / (1 << 48)

    def hash_blocks(self, block_size: int, num_blocks: int) -> list[bytes]:
        """Chained hashes of the first ``num_blocks`` full blocks, salted with the adapter's key
        and the request's own salt.

        The key is a content hash, so K/V computed under one adapter version can never be found
        by another, nor by the same name with new weights.
        """
        while len(self.block_hashes) < num_blocks:
            i = len(self.block_hashes)
            previous = self.block_hashes[-1] if i else self._salt()
            tokens = array("q", self.token_ids[i * block_size : (i + 1) * block_size])
            self.block_hashes.append(blake2b(previous + tokens.tobytes(), digest_size=16).digest())
        return self.block_hashes[:num_blocks]

    def _salt(self) -> bytes:
        key, salt = self.request.adapter or "base", self.request.cache_salt
        return f"{key}\0{salt}".encode() if salt else key.encode()

    def timing(self, now: float) -> Timing:
        first_scheduled = self.first_scheduled_at
        first_token = self.first_token_at
        return Timing(
            queue_s=(now if first_scheduled is None else first_scheduled) - self.submitted_at,
            ttft_s=None if first_token is None else first_token - self.submitted_at,
            total_s=now - self.submitted_at,
            num_prompt_tokens=self.num_prompt,
            num_cached_tokens=self.num_cached,
            num_generated_tokens=self.num_generated,
            num_thinking_tokens=self.num_thinking,
        )
