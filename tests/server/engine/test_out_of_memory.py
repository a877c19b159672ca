"""Memory runs out: the step shrinks, only who fails alone ends, and what was loaded stays."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest
import torch

from artifacts.adapter import LoraWeights
from server.engine.budget import FIRST_PATIENCE, StepBudget
from server.engine.errors import OutOfMemory
from server.engine.memory import is_out_of_memory, memory_bound
from server.engine.request import GenerationRequest, SamplingParams
from server.engine.scheduler import SchedulerLimits
from tests.server.engine.fake import (
    FakePacked,
    add_fake_adapter,
    fake_engine,
    next_token,
    run_to_idle,
    step,
)

MORE_THAN_THERE_IS = 1 << 60  # bytes


def request(
    name: str, *, prompt: int = 4, num: int = 6, adapter: str | None = None
) -> GenerationRequest:
    sampling = SamplingParams(max_tokens=num, temperature=0, ignore_eos=True)
    return GenerationRequest(name, tuple(range(1, prompt + 1)), sampling, adapter)


def test_torchs_own_failure_is_told_from_others() -> None:
    with (
        pytest.raises(OutOfMemory, match=r"while testing\. Buy more\."),
        memory_bound("testing", "Buy more."),
    ):
        torch.empty(MORE_THAN_THERE_IS, dtype=torch.uint8)
    with pytest.raises(OutOfMemory), memory_bound("testing"):
        bytearray(MORE_THAN_THERE_IS)
    with pytest.raises(RuntimeError, match="size"), memory_bound("testing"):
        torch.ones(3) + torch.ones(4)
    assert not is_out_of_memory(RuntimeError("something else"))


async def test_a_step_without_memory_is_tried_again_with_less_and_nobody_ends_in_error() -> None:
    engine, runner = fake_engine()
    runner.max_tokens = 3
    asked = [request(f"r{i}") for i in range(6)]
    streams = [engine.submit(r) for r in asked]
    await run_to_idle(engine)
    for asked_one, stream in zip(asked, streams, strict=True):
        deltas = stream.take_ready()
        assert deltas[-1].finish_reason == "length"
        tokens = list(asked_one.prompt_ids)
        for _ in range(6):
            tokens.append(next_token(None, tokens))
        assert [t for d in deltas for t in d.token_ids] == tokens[4:]
    assert engine.stats().is_healthy, "a lack of memory is no failure without a culprit"


async def test_running_streams_go_on_while_the_youngest_wait() -> None:
    engine, runner = fake_engine(num_blocks=200)
    old = [engine.submit(request(f"old{i}", num=30)) for i in range(2)]
    await step(engine, 2)
    young = [engine.submit(request(f"young{i}", num=30)) for i in range(4)]
    await step(engine, 4)
    assert engine.stats().num_running == 6
    runner.max_tokens = 3
    await step(engine)  # finds out
    assert engine.stats().num_running == 3
    for stream in (*old, *young):
        stream.take_ready()
    await step(engine, 3)
    assert [len(s.take_ready()) for s in (*old, *young)] == [3, 3, 3, 0, 0, 0]
    runner.max_tokens = 100
    await run_to_idle(engine)
    assert [s.take_ready()[-1].finish_reason for s in (*old, *young)] == ["length"] * 6


async def test_only_who_lacks_memory_alone_ends_in_error() -> None:
    engine, runner = fake_engine()
    streams = {n: engine.submit(request(n)) for n in ("one", "two", "hog", "four")}
    runner.hogs.add("hog")
    await run_to_idle(engine)
    last = {name: s.take_ready()[-1] for name, s in streams.items()}
    assert {n: d.finish_reason for n, d in last.items()} == {
        "one": "length",
        "two": "length",
        "hog": "error",
        "four": "length",
    }
    assert "memory" in (last["hog"].error or "")


def test_the_budget_recovers_slower_after_each_lack() -> None:
    budget = StepBudget(64)
    budget.shrink(64)
    assert budget.num_tokens == 32
    waits = []
    for _ in range(3):
        num = 0
        while budget.num_tokens == 32:
            budget.note_good_step()
            num += 1
        waits.append(num)
        assert budget.num_tokens == 64
        budget.shrink(64)
    assert waits[0] == 2 * FIRST_PATIENCE
    for _ in range(20):
        budget.shrink(budget.num_tokens)
    assert budget.num_tokens == 1


async def test_no_memory_for_a_bank_write_ends_the_request_that_needs_it_and_no_other() -> None:
    engine, runner = fake_engine()
    add_fake_adapter(engine, "old")
    add_fake_adapter(engine, "new")
    stream = engine.submit(request("old", num=12, adapter="old"))
    await step(engine, 2)
    runner.num_failing_writes = 1
    bad = engine.submit(request("new", adapter="new"))
    await step(engine)
    last = bad.take_ready()[-1]
    assert (last.finish_reason, last.error) == ("error", "OutOfMemory: no memory for the adapter")
    assert set(engine.stats().resident_adapters) == {"old"}
    again = engine.submit(request("again", adapter="new"))  # memory is back
    await run_to_idle(engine)
    assert again.take_ready()[-1].finish_reason == "length"
    assert stream.take_ready()[-1].finish_reason == "length"


async def test_no_memory_for_a_preload_is_told_to_who_asked() -> None:
    engine, runner = fake_engine()
    add_fake_adapter(engine, "a")
    runner.num_failing_writes = 1
    preload = asyncio.ensure_future(engine.preload_adapter("a"))
    await asyncio.sleep(0)
    await step(engine)
    with pytest.raises(OutOfMemory, match="adapter"):
        await preload
    assert engine.stats().resident_adapters == {}
    assert engine.known_adapters() == {"a"}


async def test_no_memory_for_packing_leaves_everything_as_it_was() -> None:
    engine, _ = fake_engine()
    add_fake_adapter(engine, "a")

    def pack(weights: LoraWeights) -> FakePacked:
        with memory_bound("packing an adapter"):
            torch.empty(MORE_THAN_THERE_IS, dtype=torch.uint8)
        raise AssertionError("unreachable")

    engine._pack = pack  # type: ignore[assignment]
    with pytest.raises(OutOfMemory, match="packing an adapter"):
        engine.add_adapter("b", cast("LoraWeights", FakePacked("b", 8)))
    assert engine.known_adapters() == {"a"}
    stream = engine.submit(request("a", adapter="a"))
    await run_to_idle(engine)
    assert stream.take_ready()[-1].finish_reason == "length"


async def test_a_large_prompt_alone_is_cut_smaller_until_it_fits() -> None:
    limits = SchedulerLimits(max_num_seqs=4, max_batched_tokens=16)
    engine, runner = fake_engine(limits=limits)
    runner.max_tokens = 5
    stream = engine.submit(request("long", prompt=40, num=4))
    await run_to_idle(engine)
    assert stream.take_ready()[-1].finish_reason == "length"
    assert runner.num_tokens[:3] == [16, 8, 4]
