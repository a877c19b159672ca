"""Nobody waits for ever: for blocks, for a seat, or for a place in the bank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from server.engine.request import Share
from server.engine.scheduler import SchedulerLimits
from server.engine.sequence import Sequence
from tests.server.engine.test_turns import Served, p90

TWELVE = tuple(f"k{i}" for i in range(12))


@dataclass(eq=False)
class Load:
    """Streams of one tenant that ask again as soon as they have their answer."""

    num_streams: int
    prompt: int
    num: int
    tenant: str = ""
    adapters: tuple[str | None, ...] = (None,)
    asked: list[Sequence] = field(default_factory=list)

    def ask(self, served: Served) -> Sequence:
        adapter = self.adapters[len(self.asked) % len(self.adapters)]
        share = Share(self.tenant)
        self.asked.append(served.submit(adapter, prompt=self.prompt, num=self.num, share=share))
        return self.asked[-1]

    @property
    def ttft_s(self) -> list[float]:
        return [s.first_token_at - s.submitted_at for s in self.asked if s.first_token_at]


def is_done(seq: Sequence) -> bool:
    return seq.num_generated >= seq.request.sampling.max_tokens


def run(
    served: Served, *loads: Load, seconds: float, until: Callable[[], bool] = lambda: False
) -> None:
    end = served.now + seconds
    last = [(load, load.ask(served)) for load in loads for _ in range(load.num_streams)]
    while served.now < end and not until():
        if not served.step():
            served.now += 0.01  # as the engine sleeps
        last = [(load, load.ask(served) if is_done(seq) else seq) for load, seq in last]


@pytest.mark.parametrize("tenants", [("a", "b"), ("", "")])
def test_two_that_need_most_of_the_cache_each_get_to_an_end(tenants: tuple[str, str]) -> None:
    """They took it from each other for ever, whenever one was over its half."""
    served = Served(2, num_blocks=1000)
    served.know("a", "b")
    both = [
        served.submit(adapter, prompt=7900, num=1000, share=Share(tenant))
        for adapter, tenant in zip("ab", tenants, strict=True)
    ]
    run(served, seconds=100, until=lambda: all(map(is_done, both)))
    assert all(map(is_done, both))


@pytest.mark.parametrize(("adapter", "tenant"), [(None, "other"), ("k0", "many")])
def test_a_prompt_above_its_share_of_the_cache_is_read(adapter: str | None, tenant: str) -> None:
    served = Served(1, num_blocks=200)
    served.know("k0")
    many = Load(16, 180, 40, "many")
    run(served, many, seconds=5)
    huge = served.submit(adapter, prompt=2800, num=4, share=Share(tenant))
    run(served, many, seconds=60, until=lambda: is_done(huge))
    assert is_done(huge)
    assert len(many.ttft_s) > 30, "and the others are served"


def test_many_small_prompts_take_no_blocks_that_a_large_one_waits_for() -> None:
    served = Served(13, num_blocks=200)
    served.know(*TWELVE, "large")
    small = Load(64, 60, 60, adapters=TWELVE)
    run(served, small, seconds=10)
    large = served.submit("large", prompt=1500, num=4)
    run(served, small, seconds=60, until=lambda: is_done(large))
    assert is_done(large)


def test_prompts_that_are_always_being_read_keep_a_place_for_a_time_only() -> None:
    served = Served(1)
    served.know("busy", "late")
    busy = Load(4, 3000, 1, adapters=("busy",))
    run(served, busy, seconds=5)
    late = served.submit("late")
    run(served, busy, seconds=10, until=lambda: late.first_token_at is not None)
    assert late.first_token_at is not None
    assert late.first_token_at - late.submitted_at < served.limits.max_suspension_s + 1


def test_an_adapter_finds_a_place_among_anothers_many_with_long_answers() -> None:
    """All seats and places are the greedy tenant's, and none becomes free by itself for long."""
    keys = tuple(f"k{i}" for i in range(32))
    served = Served(8)
    served.know(*keys, "own")
    greedy, polite = Load(64, 64, 800, "greedy", keys), Load(2, 128, 32, "polite", ("own",))
    run(served, greedy, seconds=20)
    run(served, polite, seconds=40)
    assert len(polite.ttft_s) > 20
    assert p90(polite.ttft_s) < 0.4
    assert served.scheduler.suspended, "the greedy one's adapters go round"


def test_a_place_stays_known_whoever_takes_over_the_seat_of_its_last_user() -> None:
    """An adapter that is held and not in the books could not be told to go."""
    served = Served(1, SchedulerLimits(max_num_seqs=2))
    served.know("shared")
    served.submit(None, num=50, share=Share("greedy"))
    served.submit("shared", num=50, share=Share("greedy"))
    served.step()
    polite = served.submit("shared", num=50, share=Share("polite"))
    served.step()
    assert served.scheduler.num_displacements == 1
    assert polite in served.scheduler.running
    assert set(served.scheduler._held_since) == {"shared"}


def test_a_displaced_answer_comes_back_before_its_tenants_newcomers() -> None:
    served = Served(2, SchedulerLimits(max_num_seqs=31))
    served.know("a", "b")
    greedy = Share("greedy")
    for adapter, num, prompt in (("b", 15, 10), ("a", 16, 20)):  # a has been given more
        for _ in range(num):
            served.submit(adapter, prompt=prompt, num=200, share=greedy)
    served.step()
    polite = served.submit(None, num=1, share=Share("polite"))
    newcomers = [served.submit("b", num=200, share=greedy) for _ in range(4)]
    served.step()
    (displaced,) = [seq for seq in served.scheduler.waiting if seq not in newcomers]
    assert displaced.request.adapter == "a"
    assert is_done(polite)
    served.step()
    assert displaced in served.scheduler.running
    assert list(served.scheduler.waiting) == newcomers
