"""The scheduler's promises to streams, prompts and adapters."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from server.engine.blocks import BlockPool
from server.engine.output import OutputText
from server.engine.request import GenerationRequest, SamplingParams
from server.engine.scheduler import Chunk, Scheduler, SchedulerLimits
from server.engine.sequence import Sequence
from server.engine.slots import AdapterSlots

LIMITS = SchedulerLimits(max_num_seqs=4, max_batched_tokens=16)


def sequence(name: str, prompt: list[int], adapter: str | None = None) -> Sequence:
    request = GenerationRequest(name, tuple(prompt), SamplingParams(max_tokens=50), adapter)
    return Sequence(request, OutputText(lambda ids: ""), 0.0)


class RoomForAll:
    """A bank without limits."""

    def pin(self, key: str) -> bool:
        return True

    def unpin(self, key: str) -> None:
        pass

    def can_place(self, key: str, giving_up: frozenset[str] = frozenset()) -> bool:
        return True

    def prefetch(self, key: str, keep: frozenset[str]) -> bool:
        return False


def scheduler(num_blocks: int = 32, block_size: int = 4) -> Scheduler:
    blocks = BlockPool(num_blocks, block_size)
    return Scheduler(LIMITS, blocks, RoomForAll())


def advance(scheduler: Scheduler, chunks: list[Chunk]) -> None:
    for chunk in chunks:
        scheduler.update(chunk, 7 if chunk.is_last else None)


def test_running_streams_get_their_token_before_a_long_prompt_gets_the_rest() -> None:
    sched = scheduler()
    sched.add(sequence("stream", [1, 2, 3]))
    advance(sched, sched.schedule(0.0))
    sched.add(sequence("long", list(range(100, 140))))
    for _ in range(3):
        chunks = sched.schedule(0.0)
        assert [(c.seq.request.request_id, c.num_tokens) for c in chunks] == [
            ("stream", 1),
            ("long", min(15, 40 - chunks[1].start)),
        ]
        advance(sched, chunks)


@given(st.lists(st.lists(st.integers(1, 60), max_size=3), min_size=5, max_size=25))
def test_no_prompt_delays_a_running_stream_by_more_than_the_budget(
    arrivals: list[list[int]],
) -> None:
    """Prompts of the given lengths arrive before each step; the cache is large enough."""
    sched = scheduler(num_blocks=2000)
    for step, lengths in enumerate(arrivals):
        for i, length in enumerate(lengths):
            sched.add(sequence(f"{step}-{i}", [step, i, *range(length)]))
        streams = [seq for seq in sched.running if seq.num_pending == 1]
        chunks = sched.schedule(0.0)
        assert sum(chunk.num_tokens for chunk in chunks) <= LIMITS.max_batched_tokens
        assert len(sched.running) <= LIMITS.max_num_seqs
        assert set(streams) <= {chunk.seq for chunk in chunks}
        advance(sched, chunks)
        for chunk in chunks:
            if chunk.seq.num_generated == 3:
                sched.finish(chunk.seq)


def test_a_second_prompt_with_the_same_beginning_computes_only_the_rest() -> None:
    sched = scheduler()
    first = sequence("first", list(range(11)))
    sched.add(first)
    advance(sched, sched.schedule(0.0))
    sched.finish(first)
    second = sequence("second", [*range(9), 99, 98])
    sched.add(second)
    (chunk,) = sched.schedule(0.0)
    assert (chunk.start, chunk.num_tokens) == (8, 3)
    assert second.num_cached == 8


def test_the_same_tokens_under_another_adapter_are_computed_anew() -> None:
    sched = scheduler()
    first = sequence("first", list(range(11)), adapter="a")
    sched.add(first)
    advance(sched, sched.schedule(0.0))
    sched.finish(first)
    sched.add(sequence("second", list(range(11)), adapter="b"))
    (chunk,) = sched.schedule(0.0)
    assert (chunk.start, chunk.num_tokens) == (0, 11)


def test_the_youngest_gives_way_when_blocks_run_out_and_keeps_its_tokens() -> None:
    sched = scheduler(num_blocks=6)
    old, young = sequence("old", [1] * 8), sequence("young", [2] * 8)
    for seq in (old, young):
        sched.add(seq)
    for _ in range(20):
        advance(sched, sched.schedule(0.0))
        if young in sched.waiting:
            break
    assert sched.running == [old]
    assert young.num_computed == 0
    assert young.num_generated > 0


@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 8), st.booleans()), max_size=60)
)
def test_bank_places_never_overlap_and_pinned_ones_stay(
    operations: list[tuple[str, int, bool]],
) -> None:
    slots = AdapterSlots(max_adapters=3, num_rows=16)
    pinned: dict[str, tuple[int, int]] = {}
    for key, rank, pin in operations:
        if key not in slots and slots.place(key, rank) is None:
            assert pinned, "an empty bank has room for any single adapter"
            continue
        if pin and key not in pinned:
            slots.pin(key)
            pinned[key] = slots.rows(key)
        elif key in pinned:
            slots.unpin(key)
            del pinned[key]
        for held, place in pinned.items():
            assert slots.rows(held) == place
        taken = [row for k in slots.keys for row in range(*_span(slots.rows(k)))]
        assert len(taken) == len(set(taken))
        assert len(slots.keys) <= 3
        assert all(row < 16 for row in taken)


def _span(place: tuple[int, int]) -> tuple[int, int]:
    return place[0], place[0] + place[1]
