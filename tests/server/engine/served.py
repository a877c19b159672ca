"""The one place where these tests build an engine with a model behind it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import torch

from artifacts.adapter import LoraPair, LoraWeights
from artifacts.architecture import linear_shapes
from artifacts.base import Base
from server.engine.engine import Engine
from server.engine.load import EngineLimits, build_engine
from server.engine.request import Delta, EngineStats, GenerationRequest, SamplingParams

GREEDY = SamplingParams(max_tokens=24, temperature=0, ignore_eos=True)
SEEDED = SamplingParams(max_tokens=24, temperature=0.9, top_p=0.95, seed=11, ignore_eos=True)
TEXTS = [f"Where is my order {n}? I bought a kettle and a lamp {n} days ago." * 2 for n in range(6)]


class Served:
    """An engine on a base, for the length of a ``with`` block. ``options`` go to build_engine."""

    def __init__(self, base: Base, limits: EngineLimits, **options: Any) -> None:
        self.base = base
        self.engine: Engine = build_engine(base, limits=limits, **{"dtype": "float32", **options})

    def __enter__(self) -> Served:
        self.engine.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.engine.stop()

    @property
    def stats(self) -> EngineStats:
        return self.engine.stats()

    def ids(self, text: str) -> list[int]:
        ids: list[int] = self.base.tokenizer(text, add_special_tokens=False).input_ids
        return ids

    async def deltas(
        self,
        prompt: str | Sequence[int],
        name: str,
        sampling: SamplingParams,
        adapter: str | None = None,
    ) -> list[Delta]:
        ids = self.ids(prompt) if isinstance(prompt, str) else prompt
        stream = self.engine.submit(GenerationRequest(name, tuple(ids), sampling, adapter))
        return [delta async for delta in stream]

    async def answers(
        self,
        sampling: SamplingParams,
        texts: Sequence[str] = TEXTS,
        adapters: Sequence[str | None] = (None,),
    ) -> list[list[int]]:
        """Token ids of all texts, asked at once; the adapters take turns."""
        jobs = [
            self.deltas(text, f"r{i}", sampling, adapters[i % len(adapters)])
            for i, text in enumerate(texts)
        ]
        return [[t for d in deltas for t in d.token_ids] for deltas in await asyncio.gather(*jobs)]


def random_adapter(base: Base, key: str, rank: int = 4) -> LoraWeights:
    """All linears, random weights strong enough to change answers; ``key`` is hash and seed."""
    generator = torch.Generator().manual_seed(sum(key.encode()))
    pairs = {
        module: LoraPair(
            torch.randn((rank, n_in), generator=generator) / n_in**0.5,
            torch.randn((n_out, rank), generator=generator) * 0.05,
            2.0,
        )
        for module, (n_out, n_in) in linear_shapes(base.config).items()
    }
    return LoraWeights(pairs, rank, 2 * rank, (), key, 0, {})
