"""The mutable state of one accepted request inside the engine thread. No torch."""

from __future__ import annotations

import secrets
from array import array
from dataclasses import dataclass, field
from hashlib import blake2b

from server.engine.output import OutputText
from server.engine.request import GenerationRequest, Timing


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
    number: int = 0  # in order of arrival; set by Scheduler
    suspended_at: float | None = None  # last, for another adapter's turn; set by Scheduler
    first_scheduled_at: float | None = None
    first_token_at: float | None = None

    def __post_init__(self) -> None:
        self.token_ids = list(self.request.prompt_ids)
        seed = self.request.sampling.seed
        self.seed = secrets.randbits(63) if seed is None else seed

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

    def uniform(self) -> float:
        """The next draw from [0, 1): a pure function of the seed and the position.

        Being stateless, it gives the same token again after a preemption or a repeated step. 48
        bits leave room for rounding: a sum of probabilities times the draw stays below the sum.
        """
        key = f"{self.seed}:{self.num_generated}".encode()
        return int.from_bytes(blake2b(key, digest_size=6).digest(), "big") / (1 << 48)

    def hash_blocks(self, block_size: int, num_blocks: int) -> list[bytes]:
        """Chained hashes of the first ``num_blocks`` full blocks, salted with the adapter's key.

        The key is a content hash, so K/V computed under one adapter version can never be found
        by another, nor by the same name with new weights.
        """
        while len(self.block_hashes) < num_blocks:
            i = len(self.block_hashes)
            previous = self.block_hashes[-1] if i else (self.request.adapter or "base").encode()
            tokens = array("q", self.token_ids[i * block_size : (i + 1) * block_size])
            self.block_hashes.append(blake2b(previous + tokens.tobytes(), digest_size=16).digest())
        return self.block_hashes[:num_blocks]

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
        )
