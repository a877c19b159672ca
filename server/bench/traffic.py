"""Requests against one engine in process, each token clocked where a route would receive it."""

from __future__ import annotations

import asyncio
import gc
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from artifacts.adapter import LoraPair, LoraWeights
from artifacts.architecture import linear_shapes
from artifacts.base import Base
from server.engine.engine import Engine
from server.engine.load import EngineLimits, build_engine
from server.engine.request import GenerationRequest, SamplingParams

WARM_UP = 512  # tokens of the first prompt: as long as any that is clocked alone


@dataclass
class Clocked:
    """One answer. Times are ``time.perf_counter`` values."""

    submitted: float = 0.0
    token_ids: list[int] = field(default_factory=list)
    token_times: list[float] = field(default_factory=list)  # one per token

    @property
    def ttft_s(self) -> float:
        return self.token_times[0] - self.submitted


class Client:
    """Submits to one engine; prompts are random, so that no two share a prefix."""

    def __init__(self, engine: Engine, seed: int) -> None:
        self.engine = engine
        self._random = random.Random(seed)
        self._num_requests = 0

    def prompt(self, num_tokens: int) -> tuple[int, ...]:
        return tuple(self._random.choices(range(self.engine.vocab_size), k=num_tokens))

    async def ask(
        self,
        prompt: tuple[int, ...],
        num_new: int,
        adapter: str | None = None,
        into: Clocked | None = None,
    ) -> Clocked:
        """One request to its last token; ``into`` lets others watch it grow.

        Raises RuntimeError unless it has all ``num_new`` tokens.
        """
        self._num_requests += 1
        sampling = SamplingParams(max_tokens=num_new, temperature=0, ignore_eos=True)
        request_id = f"bench-{id(self)}-{self._num_requests}"
        answer = Clocked() if into is None else into
        answer.submitted = time.perf_counter()
        stream = self.engine.submit(GenerationRequest(request_id, prompt, sampling, adapter))
        async for delta in stream:
            answer.token_ids += delta.token_ids
            answer.token_times += [time.perf_counter()] * len(delta.token_ids)
            if delta.error is not None:
                raise RuntimeError(f"a request of the benchmark failed: {delta.error}")
        if len(answer.token_ids) != num_new:
            raise RuntimeError(f"{len(answer.token_ids)} tokens came, {num_new} were asked for")
        return answer

    async def burst(
        self, adapters: Sequence[str | None], num_prompt: int, num_new: int
    ) -> tuple[float, list[Clocked]]:
        """One request per entry of ``adapters``, all at once; output tokens/s over all, answers."""
        prompts = [self.prompt(num_prompt) for _ in adapters]
        started = time.perf_counter()
        pairs = zip(prompts, adapters, strict=True)
        answers = await asyncio.gather(*[self.ask(p, num_new, a) for p, a in pairs])
        seconds = max(a.token_times[-1] for a in answers) - started
        return len(answers) * num_new / seconds, list(answers)

    async def add(self, weights: LoraWeights, *, is_resident: bool = True) -> str:
        """Make an adapter known, and resident unless asked otherwise; its key."""
        key = weights.content_hash
        await asyncio.to_thread(self.engine.add_adapter, key, weights)
        if is_resident:
            await self.engine.preload_adapter(key)
        return key


@dataclass(frozen=True)
class Setup:
    """What all engines of one run have in common."""

    base: Base
    dtype: str
    limits: EngineLimits
    seed: int = 0

    @asynccontextmanager
    async def client(self, **limits: Any) -> AsyncIterator[Client]:
        """An engine of its own with these `EngineLimits` changed, running inside the block."""
        changed = replace(self.limits, **limits)
        engine = await asyncio.to_thread(build_engine, self.base, dtype=self.dtype, limits=changed)
        engine.start()
        client = Client(engine, self.seed)
        try:
            await client.burst([None], WARM_UP, 2)
            await client.burst([None] * 8, 32, 4)
            yield client
        finally:
            await asyncio.to_thread(engine.stop)
            del client.engine, engine
            gc.collect()


def random_adapter(base: Base, rank: int, seed: int) -> LoraWeights:
    """An all-linear adapter with random weights: the bytes of a real one, no meaning."""
    generator = torch.Generator().manual_seed(seed)
    pairs = {
        module: LoraPair(
            a=torch.randn((rank, n_in), generator=generator) / n_in**0.5,
            b=torch.randn((n_out, rank), generator=generator) * 1e-3,
            scaling=2.0,
        )
        for module, (n_out, n_in) in linear_shapes(base.config).items()
    }
    return LoraWeights(
        pairs=pairs,
        rank=rank,
        alpha=2 * rank,
        target_modules=tuple(sorted({m.rsplit(".", 1)[1] for m in pairs})),
        content_hash=f"random-{rank}-{seed}",
        num_bytes=sum(p.a.nbytes + p.b.nbytes for p in pairs.values()),
        config={},
    )
