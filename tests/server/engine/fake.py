"""A model made of hashes: it checks every cache position it would read, and computes nothing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast
from zlib import crc32

from server.engine import scheduler
from server.engine.engine import Engine
from server.engine.errors import OutOfMemory
from server.engine.request import Result, Sampled, Scored, TokenLogprob
from server.engine.scheduler import Chunk, SchedulerLimits
from server.engine.spec import EngineSpec

if TYPE_CHECKING:
    from artifacts.adapter import LoraWeights
    from server.engine.bank import PackedAdapter

VOCAB = 50
Content = tuple[str | None, tuple[int, ...]]  # adapter, all tokens up to and with this position


def next_token(adapter: str | None, tokens: Rows[int]) -> int:
    """What the fake model answers, alone or in any batch."""
    return crc32(repr((adapter, tuple(tokens))).encode()) % VOCAB


def prompt_score(adapter: str | None, tokens: Rows[int]) -> TokenLogprob:
    """How likely the fake model finds the last of ``tokens`` behind the others."""
    return TokenLogprob(tokens[-1], -float(next_token(adapter, tokens)))


@dataclass
class FakeClock:
    """Time that passes only where a test or a fake step says so."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class FakeRunner:
    """Raises in `execute` while ``num_transient`` lasts, and always for ``poisoned`` requests;
    runs out of memory above ``max_tokens`` tokens and always for ``hogs``."""

    block_size: int
    clock: FakeClock = field(default_factory=FakeClock)
    step_s: float = 0.01
    max_tokens: int = 10**9
    hogs: set[str] = field(default_factory=set)
    num_failing_writes: int = 0
    kv: dict[tuple[int, int], Content] = field(default_factory=dict)
    bank: dict[int, PackedAdapter] = field(default_factory=dict)
    poisoned: set[str] = field(default_factory=set)
    num_transient: int = 0
    num_forward_passes: int = 0
    batches: list[list[str]] = field(default_factory=list)
    num_tokens: list[int] = field(default_factory=list)  # of each batch
    num_writes: int = 0
    num_out_of_memory: int = 0

    def execute(self, chunks: Rows[Chunk], places: Rows[tuple[int, int] | None]) -> list[Result]:
        self.num_forward_passes += 1
        names = {c.seq.request.request_id for c in chunks}
        num_tokens = sum(c.num_tokens for c in chunks)
        self.batches.append([c.seq.request.request_id for c in chunks])
        self.num_tokens.append(num_tokens)
        assert sum(len(c.scored) for c in chunks) <= scheduler.MAX_SCORED
        self.clock.now += self.step_s
        if num_tokens > self.max_tokens or self.hogs & names:
            self.num_out_of_memory += 1
            raise OutOfMemory("no memory for the step")
        if self.num_transient:
            self.num_transient -= 1
            raise RuntimeError("transient fault")
        if self.poisoned & names:
            raise RuntimeError("poisoned request")
        return [self._run(chunk, place) for chunk, place in zip(chunks, places, strict=True)]

    def _run(self, chunk: Chunk, place: tuple[int, int] | None) -> Result:
        seq, size = chunk.seq, self.block_size
        adapter = seq.request.adapter
        assert (place is None) == (adapter is None)
        if place is not None:
            assert cast("FakePacked", self.bank[place[0]]).key == adapter, "wrong adapter in bank"
        tokens = seq.token_ids
        end = chunk.start + chunk.num_tokens
        for p in range(chunk.start, end):
            self.kv[seq.block_table[p // size], p % size] = (adapter, tuple(tokens[: p + 1]))
        for p in range(end):
            found = self.kv.get((seq.block_table[p // size], p % size))
            assert found == (adapter, tuple(tokens[: p + 1])), f"stale K/V at position {p}"
        scores = tuple(prompt_score(adapter, tokens[: p + 2]) for p in chunk.scored)
        if chunk.is_last:
            return Sampled(next_token(adapter, tokens), prompt=scores)
        return Scored(scores) if scores else None

    def write_adapter(self, first_row: int, adapter: PackedAdapter) -> None:
        packed = cast("FakePacked", adapter)
        self.num_writes += 1
        for row in range(first_row, first_row + packed.num_rows):
            self.bank.pop(row, None)
        if self.num_failing_writes:
            self.num_failing_writes -= 1
            raise OutOfMemory("no memory for the adapter")
        self.bank[first_row] = adapter

    def scrub(self, blocks: Rows[int]) -> None:
        for key in [k for k in self.kv if k[0] in set(blocks)]:
            del self.kv[key]


@dataclass(frozen=True)
class FakePacked:
    """Stands for both the weights and their packed form."""

    key: str
    num_rows: int
    num_bytes: int = 1


def fake_engine(
    *,
    num_blocks: int = 64,
    block_size: int = 4,
    max_adapters: int = 2,
    max_queue: int = 1000,
    limits: SchedulerLimits | None = None,
) -> tuple[Engine, FakeRunner]:
    runner = FakeRunner(block_size)
    spec = EngineSpec(
        kernels="torch",
        max_model_len=64,
        max_rank=8,
        max_resident_adapters=max_adapters,
        num_adapter_rows=max_adapters * 8,
        num_blocks=num_blocks,
        block_size=block_size,
        kv_bytes=0,
        vocab_size=VOCAB,
        eos_token_ids=frozenset({0}),
        max_queue=max_queue,
        scheduler=limits or SchedulerLimits(max_num_seqs=6, max_batched_tokens=12),
    )
    engine = Engine(
        spec,
        runner,
        decode=lambda ids: "".join(chr(ord("A") + i) for i in ids),
        pack=lambda weights: cast("PackedAdapter", weights),
        clock=runner.clock,
    )
    return engine, runner


def add_fake_adapter(engine: Engine, key: str, rank: int = 8) -> None:
    engine.add_adapter(key, cast("LoraWeights", FakePacked(key, rank)))


async def step(engine: Engine, num_steps: int = 1) -> None:
    """Drive an engine that was not started, on this thread, and let its deltas arrive."""
    for _ in range(num_steps):
        engine._commands.put(lambda: None)  # an idle engine sleeps until a command comes
        engine._take_commands()
        engine._step()
        await asyncio.sleep(0)


async def run_to_idle(engine: Engine, max_steps: int = 5000) -> None:
    for _ in range(max_steps):
        await step(engine)
        if engine.stats().num_running + engine.stats().num_waiting == 0:
            with contextlib.suppress(asyncio.TimeoutError):
                await step(engine)
            return
    raise AssertionError(f"not idle after {max_steps} steps: {engine.stats()}")
