"""The engine's vocabulary: what is asked, what comes back. No torch, no HTTP.

Everything here crosses threads and is frozen.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one request picks its tokens. Validated by whoever parsed the request."""

    max_tokens: int
    temperature: float = 1.0  # 0 is greedy
    top_p: float = 1.0
    top_k: int = 0  # 0 keeps all
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    min_tokens: int = 0
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    seed: int | None = None
    top_logprobs: int | None = None  # None: no logprobs; 0: the chosen token's only


@dataclass(frozen=True, slots=True)
class Share:
    """On whose behalf, and how much of the engine is theirs beside others: weights above 0."""

    tenant: str = ""
    tenant_weight: float = 1.0
    adapter_weight: float = 1.0  # among the tenant's adapters


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One prompt to continue; ``adapter`` is a known adapter's content hash, None is the base."""

    request_id: str
    prompt_ids: tuple[int, ...]
    sampling: SamplingParams
    adapter: str | None = None
    share: Share = Share()


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log-probabilities (natural) under the model's own distribution, before any sampling rule."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()  # (token id, logprob), best first


@dataclass(frozen=True, slots=True)
class Delta:
    """What one engine step adds to one answer; the last one carries ``finish_reason``.

    ``text`` never ends inside a UTF-8 character and never shows a stop string; it may be empty
    while ``token_ids`` is not. ``error`` is set with ``finish_reason == "error"`` only.
    """

    request_id: str
    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    error: str | None = None
    timing: Timing | None = None  # on the last delta


@dataclass(frozen=True, slots=True)
class Timing:
    """Where one request's time went, in seconds of ``time.perf_counter`` differences."""

    queue_s: float  # submit → first scheduled
    ttft_s: float | None  # submit → first token, None if none came
    total_s: float
    num_prompt_tokens: int
    num_cached_tokens: int
    num_generated_tokens: int


@dataclass(frozen=True, slots=True)
class EngineStats:
    """A snapshot for /admin/stats and /metrics."""

    num_running: int
    num_waiting: int
    kv_blocks_total: int
    kv_blocks_free: int  # cached-but-unreferenced blocks count as free
    kv_bytes: int
    resident_adapters: dict[str, int] = field(default_factory=dict)  # content hash → bytes
    pinned_adapters: dict[str, int] = field(default_factory=dict)  # content hash → running requests
    num_steps: int = 0
    num_forward_passes: int = 0
    num_preemptions: int = 0  # for lack of KV blocks or memory
    num_suspensions: int = 0  # for another adapter's turn in the bank
    num_displacements: int = 0  # of who had more than a fair share, by who had less
    num_adapter_writes: int = 0  # into the bank
    is_healthy: bool = True
