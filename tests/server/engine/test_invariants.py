"""The engine's promises to requests and adapters, one by one; test_interleavings.py mixes all."""

from __future__ import annotations

import asyncio

import pytest

from server.engine.errors import AdapterInUse, EngineClosed, EngineOverloaded, UnknownAdapter
from server.engine.request import GenerationRequest, SamplingParams
from server.engine.scheduler import SchedulerLimits
from server.engine.stream import AnswerStream
from tests.server.engine.fake import (
    add_fake_adapter,
    fake_engine,
    run_to_idle,
    step,
)


def request(name: str, *, adapter: str | None = None, num: int = 5) -> GenerationRequest:
    prompt = tuple(name.encode())
    return GenerationRequest(
        name, prompt, SamplingParams(max_tokens=num, temperature=0, ignore_eos=True), adapter
    )


async def test_only_the_culprit_of_a_failing_step_ends_in_error() -> None:
    engine, runner = fake_engine()
    streams = {name: engine.submit(request(name)) for name in ("one", "two", "bad", "four")}
    runner.poisoned.add("bad")
    await run_to_idle(engine)
    reasons = {name: s.take_ready()[-1].finish_reason for name, s in streams.items()}
    assert reasons == {"one": "length", "two": "length", "bad": "error", "four": "length"}
    assert engine.stats().is_healthy


async def test_a_removed_adapter_finishes_its_requests_and_refuses_new_ones() -> None:
    engine, _ = fake_engine()
    add_fake_adapter(engine, "a")
    stream = engine.submit(request("one", adapter="a"))
    await step(engine)
    with pytest.raises(AdapterInUse):
        await engine.remove_adapter("a", wait=False)
    removal = asyncio.ensure_future(engine.remove_adapter("a"))
    await asyncio.sleep(0)
    with pytest.raises(UnknownAdapter):
        engine.submit(request("two", adapter="a"))
    assert not removal.done()
    await run_to_idle(engine)
    await removal
    assert stream.take_ready()[-1].finish_reason == "length"
    assert engine.known_adapters() == set()


async def test_a_client_that_leaves_while_waiting_for_a_removal_harms_nobody() -> None:
    engine, _ = fake_engine()
    add_fake_adapter(engine, "a")
    engine.submit(request("one", adapter="a"))
    await step(engine)
    removal = asyncio.ensure_future(engine.remove_adapter("a"))
    await asyncio.sleep(0)
    removal.cancel()
    await run_to_idle(engine)
    assert engine.known_adapters() == set()


async def test_more_adapters_than_places_are_all_served() -> None:
    engine, _ = fake_engine(max_adapters=2)
    for i in range(7):
        add_fake_adapter(engine, f"k{i}")
    streams = [engine.submit(request(f"r{i}", adapter=f"k{i % 7}")) for i in range(21)]
    await run_to_idle(engine)
    assert all(s.take_ready()[-1].finish_reason == "length" for s in streams)
    assert len(engine.stats().resident_adapters) <= 2


async def test_a_stream_of_resident_requests_does_not_starve_another_adapter() -> None:
    limits = SchedulerLimits(max_num_seqs=6, max_batched_tokens=12, max_suspension_s=0.0)
    engine, _ = fake_engine(max_adapters=1, limits=limits)
    add_fake_adapter(engine, "hot")
    add_fake_adapter(engine, "cold")
    engine.submit(request("h0", adapter="hot", num=8))
    await step(engine)
    cold = engine.submit(request("cold", adapter="cold", num=2))
    for i in range(1, 40):  # somebody always wants the hot adapter
        engine.submit(request(f"h{i}", adapter="hot", num=8))
        await step(engine, 2)
    assert cold.take_ready()[-1].finish_reason == "length"
    await run_to_idle(engine)


async def test_a_full_queue_refuses_and_holds_nothing() -> None:
    engine, _ = fake_engine(max_queue=0)
    add_fake_adapter(engine, "a")
    for i in range(6):
        engine.submit(request(f"r{i}"))
    with pytest.raises(EngineOverloaded):
        engine.submit(request("late", adapter="a"))
    # The refused request does not count as a user of its adapter.
    removal = asyncio.ensure_future(engine.remove_adapter("a", wait=False))
    await asyncio.sleep(0)
    await step(engine)
    await removal


async def test_stopping_ends_every_open_stream_and_refuses_new_ones() -> None:
    engine, _ = fake_engine()
    engine.start()
    stream = engine.submit(request("one", num=40))
    await stream.__anext__()
    await asyncio.to_thread(engine.stop)
    rest = [d async for d in stream]
    assert rest[-1].finish_reason in ("abort", "length")
    with pytest.raises(EngineClosed):
        engine.submit(request("two"))


async def test_aborting_what_waits_leaves_what_runs() -> None:
    engine, _ = fake_engine()  # six seats
    streams = [engine.submit(request(f"r{i}")) for i in range(9)]
    await step(engine)
    engine.abort_waiting()
    await run_to_idle(engine)
    reasons = [s.take_ready()[-1].finish_reason for s in streams]
    assert reasons == ["length"] * 6 + ["abort"] * 3


async def test_closing_a_stream_stops_its_generation() -> None:
    engine, runner = fake_engine()
    stream = engine.submit(request("one", num=40))
    await step(engine, 3)
    stream.stop()
    before = runner.num_forward_passes
    await step(engine, 5)
    assert runner.num_forward_passes == before, "no step was spent on it after the abort"
    assert engine.stats().kv_blocks_free == engine.stats().kv_blocks_total


async def test_a_failing_request_takes_no_shared_keys_and_leaves_none_behind() -> None:
    engine, runner = fake_engine()
    prompt = tuple([1, 2] * 6)  # three blocks of four

    def ask(name: str) -> AnswerStream:
        sampling = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
        return engine.submit(GenerationRequest(name, (*prompt, len(name)), sampling))

    good = ask("one")
    await step(engine)
    bad = ask("bad!")  # shares the first three blocks
    await step(engine, 2)
    runner.poisoned.add("bad!")
    await run_to_idle(engine)
    again = ask("again")  # finds the shared blocks whole
    await run_to_idle(engine)
    reasons = [s.take_ready()[-1].finish_reason for s in (good, bad, again)]
    assert reasons == ["length", "error", "length"]
