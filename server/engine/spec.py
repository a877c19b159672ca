"""What one engine is, fixed before it starts."""

from __future__ import annotations

from dataclasses import dataclass

from server.engine.scheduler import SchedulerLimits


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """Fixed facts of one engine: what the base allows and what the operator configured."""

    kernels: str  # that compute a step: "amx", "torch", or what runs an export
    max_model_len: int
    max_rank: int
    max_resident_adapters: int
    num_adapter_rows: int
    num_blocks: int
    block_size: int
    kv_bytes: int
    vocab_size: int
    eos_token_ids: frozenset[int]
    max_queue: int
    scheduler: SchedulerLimits
    shares_prefixes: bool = True  # whether a sequence can use K/V that another has computed

    @property
    def capacity(self) -> int:
        """Tokens of the longest request: the context, or the whole KV cache if that is less."""
        return min(self.max_model_len, self.num_blocks * self.block_size)
