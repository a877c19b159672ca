"""What an epoch shows: weights, balance, reach, and the same rows again for the same seed."""

from __future__ import annotations

import math
from collections import Counter
from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.batches import ShuffledBatches, num_batches
from training.config import parse_config
from training.data.examples import Example
from training.data.mixing import Mix, Parentage, Sampling, make_mix
from training.plan import identity, make_plan


def mix(
    sources: list[int],
    kinds: list[int] | None = None,
    weights: tuple[float, ...] = (1.0,),
    sampling: Sampling = "natural",
    seed: int = 0,
) -> Mix:
    kinds = [0] * len(sources) if kinds is None else kinds
    parentage = Parentage(np.array(sources, np.int64), np.array(kinds, np.int64))
    return Mix(parentage, weights, sampling, seed)


def test_without_weights_every_row_is_shown_once() -> None:
    assert sorted(mix([0] * 7).epoch_rows(3)) == list(range(7))
    assert make_mix([Example([1], [1])], (1.0, 1.0), "natural", 0) is None


def test_weight_two_shows_each_row_twice_and_a_half_shows_the_other_half_next() -> None:
    mixed = mix([0] * 10 + [1] * 20, weights=(2.0, 0.5))
    assert len(mixed) == 30
    shown = [Counter(mixed.epoch_rows(epoch)) for epoch in range(4)]
    for counts in shown:
        assert [counts[row] for row in range(10)] == [2] * 10
        assert sum(counts[row] for row in range(10, 30)) == 10
    uneven = mix([0] * 10 + [1] * 11, weights=(2.0, 0.3))
    assert len(uneven) == 23
    assert all(Counter(uneven.epoch_rows(1))[row] == 2 for row in range(10))
    halves = [{row for row in counts if row >= 10} for counts in shown]
    assert halves[0] | halves[1] == halves[2] | halves[3] == set(range(10, 30))
    assert halves[0] != halves[2] or halves[0] != halves[1]


def test_the_rows_depend_on_seed_and_epoch_alone() -> None:
    first = mix([0] * 50, weights=(0.3,), seed=1)
    again = mix([0] * 50, weights=(0.3,), seed=1)
    assert [first.epoch_rows(e) for e in (2, 0, 1)] == [again.epoch_rows(e) for e in (2, 0, 1)]
    other = mix([0] * 50, weights=(0.3,), seed=2)
    assert other.epoch_rows(0) != first.epoch_rows(0) != first.epoch_rows(1)


def test_inverse_frequency_balances_kinds_and_reaches_every_row() -> None:
    """One weight per kind instead of per row would draw as many rows as there are kinds."""
    kinds = [1] * 900 + [2] * 90 + [3] * 10
    mixed = mix([0] * 1000, kinds, sampling="inverse_frequency")
    assert len(mixed) == 1000
    seen: Counter[int] = Counter()
    for epoch in range(8):
        counts = Counter(mixed.epoch_rows(epoch))
        of_kind = Counter({kind: 0 for kind in (1, 2, 3)})
        for row, count in counts.items():
            of_kind[kinds[row]] += count
        assert all(abs(of_kind[kind] - 1000 / 3) <= 1 for kind in (1, 2, 3))
        seen.update(counts)
    assert set(seen) == set(range(1000))
    rare = [seen[row] for row in range(990, 1000)]
    assert max(rare) - min(rare) <= 2 * 8  # each about 33 times an epoch


def test_weights_of_sources_hold_inside_a_kind() -> None:
    mixed = mix([0] * 50 + [1] * 50, [7] * 100, (3.0, 1.0), "inverse_frequency")
    counts = Counter(mixed.epoch_rows(0))
    from_first = sum(counts[row] for row in range(50))
    assert from_first == pytest.approx(len(mixed) * 3 / 4, abs=1)


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=1, max_size=60),
    weights=st.tuples(*[st.floats(0.05, 4)] * 3),
    sampling=st.sampled_from(["natural", "inverse_frequency"]),
    seed=st.integers(0, 1000),
)
def test_rates_are_kept_in_every_epoch_and_no_row_waits_long(
    rows: list[tuple[int, int]], weights: tuple[float, ...], sampling: Sampling, seed: int
) -> None:
    sources, kinds = [source for source, _ in rows], [kind for _, kind in rows]
    mixed = mix(sources, kinds, weights, sampling, seed)
    waiting = set(range(len(rows)))
    longest = math.ceil(2 / float(mixed.rates.min())) + 1
    for epoch in range(min(longest, 200)):
        shown = mixed.epoch_rows(epoch)
        assert len(shown) == len(mixed)
        counts = Counter(shown)
        for row, rate in enumerate(mixed.rates):
            assert math.floor(rate - 1e-9) <= counts[row] <= math.ceil(rate + 1e-9)
        waiting -= set(shown)
    assert not waiting or longest > 200


def test_examples_carry_their_source_and_kind() -> None:
    examples = [Example([1, 2], [1, 2], source=i % 2) for i in range(10)]
    mixed = make_mix(examples, (2.0, 1.0), "natural", 0)
    assert mixed is not None
    counts = Counter(mixed.epoch_rows(0))
    assert [counts[row] for row in range(10)] == [2, 1] * 5


def test_rounding_adds_no_row_and_loses_none() -> None:
    """Sums of tenths miss whole numbers on both sides; a mark may stand exactly there."""
    for count in range(10, 200, 10):
        mixed = mix([0] * count, weights=(0.1,))
        mixed._offset = 0.0
        assert len(mixed.epoch_rows(0)) == len(mixed) == count // 10


@settings(max_examples=100, deadline=None)
@given(
    lengths=st.lists(st.integers(2, 90), min_size=1, max_size=40),
    weight=st.floats(0.1, 3),
    max_tokens=st.integers(1, 400) | st.none(),
    epoch=st.integers(0, 5),
)
def test_batches_hold_the_epochs_rows_and_are_as_many_in_every_epoch(
    lengths: list[int], weight: float, max_tokens: int | None, epoch: int
) -> None:
    examples = [Example([1] * n, [1] * n, source=i % 2) for i, n in enumerate(lengths)]
    mixed = make_mix(examples, (weight, 1.7), "natural", 3)
    assert mixed is not None
    batches = ShuffledBatches(examples, 4, 3, max_tokens, mixed)
    batches.set_epoch(epoch)
    found = list(batches)
    assert sorted(chain(*found)) == sorted(mixed.epoch_rows(epoch))
    assert all(found)
    assert len(found) == len(batches)
    assert found == list(batches)
    assert num_batches(lengths, 4, max_tokens, mixed) == len(batches)


def test_a_checkpoint_of_other_weights_is_another_run() -> None:
    sources = [{"path": "a.jsonl", "weight": weight} for weight in (2, 3)]
    one, other = (parse_config({"name": "a", "data": [source]}) for source in sources)
    plan = make_plan(one, SimpleNamespace(hidden_size=64, max_position_embeddings=64), 9, "cpu")
    assert identity(one, plan, {}) != identity(other, plan, {})
