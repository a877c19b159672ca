"""Figures, their verdicts, and what the rows compute from token times."""

from __future__ import annotations

import io
from collections import Counter
from types import SimpleNamespace

import pytest
from rich.console import Console

from server.bench.figure import Figure, at_least, at_most, fixed, ratios
from server.bench.hotload import longest_gap, normal_step
from server.bench.loads import Mix, share_of
from server.bench.machine import Ceilings
from server.bench.report import table
from server.bench.shape import is_shape, with_all_ids
from server.bench.traffic import Clocked
from server.bench.zipf import arrivals

MACHINE = Ceilings(1.0, 1.0)


def test_less_time_and_more_rate_are_nearer_the_floor() -> None:
    assert Figure("a", "a", "ms", (200.0,), fixed(100)).beside(MACHINE).of_floor == 0.5
    assert Figure("a", "a", "tok/s", (15.0,), fixed(30)).beside(MACHINE).of_floor == 0.5
    assert Figure("a", "a", "s", (1.0,)).of_floor is None


def test_the_median_is_judged_and_the_spread_shown() -> None:
    figure = Figure("a", "a", "tok/s", (1.0, 30.0, 25.0), None, at_least(24))
    assert (figure.value, figure.verdict) == (25.0, "met")
    assert figure.as_json()["spread"] == [1.0, 30.0]
    assert Figure("a", "a", "ms", (331.0,), None, at_most(330)).verdict == "missed"
    assert Figure("a", "a", "ms", (1.0,)).verdict == ""


def test_shares_compare_within_a_round() -> None:
    assert ratios((80.0, 40.0), (100.0, 50.0)) == (80.0, 80.0)
    base = Figure("b", "b", "tok/s", (100.0, 50.0), fixed(200))
    figure = Figure("a", "a", "tok/s", (80.0, 40.0), fixed(175))
    share = share_of(figure, base, "t", at_least(82)).beside(MACHINE)
    assert (share.value, share.floor, share.verdict) == (80.0, 87.5, "missed")


def test_floors_follow_from_the_best_that_the_machine_did() -> None:
    """Else a noisy moment before the run would make floors that every figure beats."""
    best = Ceilings(1.0, 5.0).best_of(Ceilings(2.0, 4.0))
    assert best == Ceilings(2.0, 5.0)
    figure = Figure("a", "a", "tok/s", (1.0,), lambda ceilings: ceilings.read_bytes_s)
    assert figure.floor is None
    assert figure.beside(best).floor == 2.0


def test_a_mix_counts_each_adapter_once() -> None:
    eight = Mix("m", "m", tuple("abcdefgh")).traffic(128, 64, 16)
    assert (eight.num_streams, eight.adapter_ranks, eight.rank_per_token) == (8, (16,) * 8, 16)
    assert Mix("m", "m", ("a",) * 8).traffic(128, 64, 16).adapter_ranks == (16,)
    assert Mix("m", "m", (None,) * 8).traffic(128, 64, 16).rank_per_token == 0


def test_zipf_traffic_is_the_same_for_the_same_seed_and_favours_the_first() -> None:
    plan = arrivals(4000, 10.0, 32, seed=1)
    assert plan == arrivals(4000, 10.0, 32, seed=1)
    assert plan != arrivals(4000, 10.0, 32, seed=2)
    counts = Counter(arrival.adapter for arrival in plan)
    assert counts[0] / counts[7] == pytest.approx(8, rel=0.35)  # the k-th has 1/k
    assert len(counts) == 32
    assert plan[-1].at_s == pytest.approx(400, rel=0.1)


def stream(*times: float) -> Clocked:
    return Clocked(0.0, [0] * len(times), list(times))


def test_the_longest_gap_is_one_that_overlaps_the_load() -> None:
    streams = [stream(0, 9, 10, 11, 12), stream(0.5, 9.5, 12.5, 30)]
    assert longest_gap(streams, 9.8, 11.5) == 3.0
    with pytest.raises(ValueError, match="no stream"):
        longest_gap(streams, 40, 41)


def test_the_normal_step_is_learned_before_the_load_and_after_every_first_token() -> None:
    streams = [stream(0, 5, 6, 7, 20), stream(5.5, 6.5, 7.5, 20.5)]
    assert normal_step(streams, 8.0) == 1.0


def test_every_id_has_a_text_and_encoding_stays_the_same() -> None:
    from artifacts.base import EMBEDDED_BASE, open_tokenizer

    tokenizer = open_tokenizer(EMBEDDED_BASE).backend_tokenizer
    import json

    from tokenizers import Tokenizer

    widened = Tokenizer.from_str(json.dumps(with_all_ids(json.loads(tokenizer.to_str()), 7000)))
    assert widened.get_vocab_size() == 7000
    assert widened.decode([6999]) == " w6999"
    text = "Where is my order? 我的订单 w6999"
    assert widened.encode(text).ids == tokenizer.encode(text).ids


def test_aims_hold_for_the_shape_they_were_set_for() -> None:
    config = SimpleNamespace(
        vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24
    )
    assert is_shape(config, "qwen2.5-0.5b")
    config.num_hidden_layers = 12
    assert not is_shape(config, "qwen2.5-0.5b")


def test_the_table_shows_floor_aim_and_verdict() -> None:
    out = io.StringIO()
    figure = Figure("a", "one stream", "tok/s", (22.0, 25.0, 26.0), fixed(30), at_least(24))
    Console(file=out, width=120).print(table("t", [figure.beside(MACHINE)]))
    for cell in ("one stream", "25.0 tok/s", "22.0-26.0", "30.0", "83 %", ">= 24", "met"):
        assert cell in out.getvalue()
