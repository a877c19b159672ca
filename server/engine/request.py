"""The engine's vocabulary: what is asked, what comes back. No torch, no HTTP.

Everything here crosses threads and is frozen.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from server.engine.errors import EngineError
    from server.engine.grammar import Grammar

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True, slots=True)
class Thinking:
    """Where a reasoning model's thoughts lie, in token ids, and how many tokens they may have."""

    start_id: int
    end_id: int
    is_open: bool = False  # the prompt ends inside them
    budget: int | None = None  # then ``end_id`` is written for the model


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
    repetition_penalty: float = 1.0  # of Keskar et al., 2019; prompt and answer
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token id, what is added)
    min_tokens: int = 0
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()
    stop_token_ids: frozenset[int] = frozenset()
    seed: int | None = None
    top_logprobs: int | None = None  # None: no logprobs; 0: the chosen token's only
    prompt_logprobs: int | None = None  # of the prompt's tokens, likewise
    grammar: Grammar | None = None  # that the answer follows; not while the model thinks
    thinking: Thinking | None = None  # None: the base has no marks for it


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
    priority: int = 0  # among the waiting ones of its flow, lower first
    cache_salt: str = ""  # K/V are shared with requests of the same salt only


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log-probabilities (natural) under the model's own distribution, before any sampling rule."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()  # (token id, logprob), best first


@dataclass(frozen=True, slots=True)
class Sampled:
    """The token that a step chose for one request, with its log-probabilities if asked for."""

    token_id: int
    logprob: TokenLogprob | None = None
    prompt: tuple[TokenLogprob, ...] = ()  # of the tokens behind `scheduler.Chunk.scored`


@dataclass(frozen=True, slots=True)
class Scored:
    """A prompt goes on, and the log-probabilities of its tokens were asked for."""

    prompt: tuple[TokenLogprob, ...]


Result = Sampled | Scored | None  # None where a prompt just goes on


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
    cause: EngineError | None = None  # of the error, where the request is to blame
    timing: Timing | None = None  # on the last delta
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()  # on the first, where asked for


@dataclass(frozen=True, slots=True)
class Timing:
    """Where one request's time went, in seconds of ``time.perf_counter`` differences."""

    queue_s: float  # submit → first scheduled
    ttft_s: float | None  # submit → first token, None if none came
    total_s: float
    num_prompt_tokens: int
    num_cached_tokens: int
    num_generated_tokens: int
    num_thinking_tokens: int = 0  # of the generated ones, the marks included


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
