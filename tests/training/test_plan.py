"""What a configuration leaves open, settled."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.config import parse_config
from training.plan import Device, make_plan


def base(hidden_size: int = 2000) -> SimpleNamespace:
    return SimpleNamespace(hidden_size=hidden_size, max_position_embeddings=4096)


@given(num_batches=st.integers(1, 3000), accumulated=st.integers(1, 32), epochs=st.floats(0.1, 9))
def test_a_run_evaluates_at_most_eight_times(
    num_batches: int, accumulated: int, epochs: float
) -> None:
    """Counting the evaluation after the last step, which the trainer always adds."""
    asked = {"name": "a", "data": "x", "gradient_accumulation": accumulated, "epochs": epochs}
    plan = make_plan(parse_config(asked), base(), num_batches, "cpu")
    assert plan.eval_steps is not None
    assert 1 <= -(-plan.total_steps // plan.eval_steps) <= 8
    assert plan.warmup_steps <= plan.total_steps


@pytest.mark.parametrize(("hidden_size", "rate"), [(256, 2.5e-3), (2000, 5e-4), (4096, 2.9e-4)])
def test_the_learning_rate_falls_with_the_width_of_the_base(hidden_size: int, rate: float) -> None:
    config = parse_config({"name": "a", "data": "x"})
    plan = make_plan(config, base(hidden_size), 100, "cuda")
    assert plan.learning_rate == pytest.approx(rate, rel=0.02)
    assert (plan.dtype, plan.max_length) == ("bfloat16", 2048)
    twice = parse_config({"name": "a", "data": "x", "learning_rate_multiplier": 2})
    assert make_plan(twice, base(hidden_size), 100, "cpu").learning_rate == 2 * plan.learning_rate


def test_evaluations_by_epoch_and_warm_up_in_steps() -> None:
    asked = {"name": "a", "data": "x", "gradient_accumulation": 2}
    plan = make_plan(
        parse_config({**asked, "eval_steps": "epoch", "warmup_steps": 3}), base(), 25, "cpu"
    )
    assert (plan.eval_steps, plan.warmup_steps, plan.total_steps) == (13, 3, 39)


def test_without_a_validation_part_nothing_is_evaluated_on_the_way() -> None:
    asked = {"name": "a", "data": "x", "split": [0.9, 0, 0.1], "eval_steps": "epoch"}
    assert make_plan(parse_config(asked), base(), 13, "cpu").eval_steps is None
    asked["validation_data"] = "held-out.jsonl"
    assert make_plan(parse_config(asked), base(), 13, "cpu").eval_steps == 13


@pytest.mark.parametrize(
    ("device", "hidden_size", "method", "dtype"),
    [
        ("cuda", 256, "lora", "bfloat16"),
        ("cpu", 4096, "lora", "float32"),
        ("amx", 256, "lora", "float32"),
        ("amx", 896, "lora", "bfloat16"),
        ("amx", 896, "full", "float32"),
    ],
)
def test_the_dtype_is_the_quicker_one(
    device: Device, hidden_size: int, method: str, dtype: str
) -> None:
    config = parse_config({"name": "a", "data": "x", "method": method})
    assert make_plan(config, base(hidden_size), 100, device).dtype == dtype
