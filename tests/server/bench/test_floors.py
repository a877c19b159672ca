"""The arithmetic of floors, against numbers worked out by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from server.bench.floors import (
    BaseCost,
    Traffic,
    cost_of,
    percentile,
    prefill_s,
    step_s,
    tokens_per_s,
    whole_s,
)
from server.bench.machine import Ceilings

QWEN_05B = SimpleNamespace(
    model_type="qwen2",
    vocab_size=151936,
    hidden_size=896,
    intermediate_size=4864,
    num_hidden_layers=24,
    num_attention_heads=14,
    num_key_value_heads=2,
    tie_word_embeddings=True,
)
FAST_READS = Ceilings(read_bytes_s=1e15, matmul_flop_s=1e12)
FAST_PRODUCTS = Ceilings(read_bytes_s=1e9, matmul_flop_s=1e18)
COST = BaseCost(
    item_bytes=2,
    num_linear=1000,
    num_head=500,
    num_small=0,
    kv_bytes_per_token=8,
    attention_flop=16,
    adapter_width=30,
    is_tied=True,
)


def test_the_half_billion_shape_has_the_bytes_that_its_file_has() -> None:
    cost = cost_of(QWEN_05B, 2)
    assert cost.stored_bytes == cost.step_bytes == 988_065_536
    assert cost.kv_bytes_per_token == 12_288
    assert 8 * cost.adapter_bytes(16) == pytest.approx(141e6, rel=0.01)


def test_an_untied_embedding_table_is_stored_but_not_read_by_a_step() -> None:
    untied = SimpleNamespace(**{**vars(QWEN_05B), "tie_word_embeddings": False})
    cost = cost_of(untied, 2)
    assert cost.step_bytes == 988_065_536
    assert cost.stored_bytes - cost.step_bytes == 2 * 151936 * 896


def test_a_step_reads_weights_once_adapters_once_each_and_every_cache() -> None:
    traffic = Traffic(num_streams=3, num_prompt=10, num_new=4, adapter_ranks=(2, 4))
    num_bytes = 2 * 1500 + 2 * 30 * (2 + 4) + 3 * 12 * 8
    assert step_s(COST, traffic, FAST_PRODUCTS) == pytest.approx(num_bytes / 1e9)


def test_a_step_of_many_streams_is_bound_by_its_products() -> None:
    traffic = Traffic(num_streams=100, num_prompt=10, num_new=4, rank_per_token=2)
    per_stream = 2 * (1000 + 500 + 30 * 2) + 16 * 12
    assert step_s(COST, traffic, FAST_READS) == pytest.approx(100 * per_stream / 1e12)


def test_a_prompt_multiplies_every_token_by_the_linears_but_only_one_by_the_head() -> None:
    flop = 2 * 1000 * 10 + 16 * 55 + 2 * 500
    assert prefill_s(COST, Traffic(1, 10, 1), FAST_READS) == pytest.approx(flop / 1e12)


def test_cached_tokens_cost_nothing_but_are_attended_to() -> None:
    flop = 2 * 1000 * 2 + 16 * (55 - 36) + 2 * 500
    cached = prefill_s(COST, Traffic(1, 10, 1), FAST_READS, num_cached=8)
    assert cached == pytest.approx(flop / 1e12)


def test_even_one_token_must_read_the_weights() -> None:
    assert prefill_s(COST, Traffic(1, 1, 1), FAST_PRODUCTS) == pytest.approx(3000 / 1e9)


def test_whole_requests_are_a_prompt_and_a_step_per_further_token() -> None:
    traffic = Traffic(2, 10, 5)
    expected = prefill_s(COST, traffic, FAST_READS) + 4 * step_s(COST, traffic, FAST_READS)
    assert whole_s(COST, traffic, FAST_READS) == pytest.approx(expected)
    assert tokens_per_s(COST, traffic, FAST_READS) == pytest.approx(10 / expected)


def test_eight_adapters_bound_the_half_billion_shape_at_seven_eighths_of_base() -> None:
    """Decoding alone: 141 MB beside 988 MB of weights."""
    cost, ceilings = cost_of(QWEN_05B, 2), Ceilings(30e9, 1e18)
    base = step_s(cost, Traffic(8, 0, 0), ceilings)
    eight = step_s(cost, Traffic(8, 0, 0, (16,) * 8, 16), ceilings)
    assert base / eight == pytest.approx(0.875, abs=0.001)


@pytest.mark.parametrize(("q", "expected"), [(0, 1), (50, 2), (90, 4), (100, 4)])
def test_percentiles_are_values_that_were_measured(q: float, expected: float) -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], q) == expected
