"""Keys of the optimiser and its watch: each does what it says, and a resume changes nothing."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.training.methods.runs import figures, losses, train, versions
from tests.training.test_run import interrupt
from training.config import parse_config
from training.early_stopping import EarlyStopping, Unit
from training.objectives.supervised import Supervised
from training.plan import make_plan


def rates(settings: dict[str, Any], **more: Any) -> list[float]:
    recorder = train(settings, **more, logging_steps=1)
    return [event["learning_rate"] for event in recorder.of("progress")]


def test_schedules(settings: dict[str, Any]) -> None:
    """Constant, linear and cosine after the warm-up that was asked for in steps."""
    more = {"max_steps": 8, "warmup_steps": 2, "warmup_ratio": 0.9, "eval_steps": 8}
    constant = rates(settings, lr_scheduler="constant", **more)
    assert constant == pytest.approx([0, 0.005] + [0.01] * 6)
    linear = rates(settings, lr_scheduler="linear", **more)
    assert linear[2:] == pytest.approx([0.01 * share / 6 for share in range(6, 0, -1)])


def test_plateau_halves_the_rate_when_the_loss_stands_still(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """After the second evaluation without improvement; a resume goes on counting."""
    monkeypatch.setattr(Supervised, "validation_loss", lambda *_: 3.0)
    more = {"max_steps": 8, "eval_steps": 1, "lr_scheduler": "plateau"}
    whole = rates(settings, **more, output_dir=str(tmp_path / "whole"))
    assert whole == pytest.approx([0.01] * 3 + [0.005] * 2 + [0.0025] * 2 + [0.00125])
    interrupt(settings, 4, **more, logging_steps=1)
    assert rates(settings, **more, resume=True) == whole[5:]
    one, other = versions(settings)
    assert one.content_hash == other.content_hash


CHANGES: dict[str, dict[str, Any]] = {
    "neftune": {"neftune_alpha": 5.0},
    "decay": {"weight_decay": 5.0},
    "adafactor": {"optimizer": "adafactor"},
    "sgd": {"optimizer": "sgd"},
    "clipping": {"max_grad_norm": 0.01, "optimizer": "sgd"},
}
SHORT = {"max_steps": 3, "eval_steps": 3, "warmup_ratio": 0}


def test_each_key_changes_the_outcome(settings: dict[str, Any]) -> None:
    train(settings, **SHORT)
    for more in CHANGES.values():
        train(settings, **SHORT, **more)
    hashes = [version.content_hash for version in versions(settings)]
    assert len(set(hashes)) == 1 + len(CHANGES)


def test_neftunes_noise_continues_where_a_resume_goes_on(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    more = {**SHORT, "max_steps": 6, **CHANGES["neftune"]}
    train(settings, **more, output_dir=str(tmp_path / "whole"))
    interrupt(settings, 4, **more)
    train(settings, **more, resume=True)
    one, other = versions(settings)
    assert one.content_hash == other.content_hash


def test_neftunes_noise_is_gone_when_the_run_is_measured(settings: dict[str, Any]) -> None:
    """The gate compares live and merged logits: noise in one of them would fail it."""
    told = losses(train(settings, neftune_alpha=50.0))
    assert told[0] > 0
    assert figures(versions(settings)[0])["merge_difference"] < 1e-4


# --- early stopping ---


def stops_at(unit: Unit, patience: int, losses: list[float], threshold: float = 0.0) -> int | None:
    """Evaluations every 4 steps, 10 steps an epoch: the step at which training stops."""
    callback = EarlyStopping(patience, unit, threshold, first_step=0)
    for number, loss in enumerate(losses, start=1):
        state = SimpleNamespace(global_step=4 * number, epoch=0.4 * number)
        control = SimpleNamespace(should_training_stop=False)
        callback = again(callback)  # as a resume would make it
        callback.on_evaluate(None, state, control, metrics={"eval_loss": loss})
        if control.should_training_stop:
            assert callback.has_stopped
            return 4 * number
    return None


def again(callback: EarlyStopping) -> EarlyStopping:
    stored = callback.state()
    made = EarlyStopping(**stored["args"])
    for name, value in stored["attributes"].items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("unit", "patience", "expected"),
    [
        ("evaluations", 3, 20),
        ("steps", 3, 12),
        ("steps", 12, 20),
        ("epochs", 1, 20),
        ("epochs", 2, 28),
    ],
)
def test_patience_is_in_the_unit_that_is_named(unit: Unit, patience: int, expected: int) -> None:
    """The best is the second of the evaluations, at step 8 and epoch 0.8."""
    assert stops_at(unit, patience, [2.0, 1.0] + [1.5] * 8) == expected


def test_an_improvement_is_larger_than_the_threshold() -> None:
    """Small steps add up: the mark moves only with an improvement that counts."""
    falling = [2.0 - 0.1 * number for number in range(12)]
    assert stops_at("evaluations", 2, falling, threshold=0.15) is None
    assert stops_at("evaluations", 2, falling, threshold=0.25) == 12
    assert stops_at("evaluations", 1, [1.0, float("nan")]) == 8


def test_a_resumed_run_stops_where_the_uninterrupted_one_does(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    more = {"early_stopping_patience": 1, "early_stopping_unit": "epochs",
            "early_stopping_threshold": 9.0, "eval_steps": 2}  # fmt: skip
    whole = train(settings, **more, output_dir=str(tmp_path / "whole"))
    steps = [event["step"] for event in whole.of("evaluated")]
    assert steps == [2, 4, 6]  # four steps are an epoch of these rows
    interrupt(settings, 4, **more)
    assert [e["step"] for e in train(settings, **more, resume=True).of("evaluated")] == [6]
    one, other = versions(settings)
    assert one.content_hash == other.content_hash


def test_whole_models_and_preferences_learn_at_lower_rates() -> None:
    base = SimpleNamespace(hidden_size=2000, max_position_embeddings=4096)
    asked: list[tuple[dict[str, Any], float]] = [
        ({}, 5e-4),
        ({"method": "full"}, 5e-5),
        ({"method": "freeze"}, 5e-5),
        ({"objective": "dpo"}, 2.5e-5),
    ]
    for keys, rate in asked:
        config = parse_config({"name": "a", "data": "x", **keys})
        assert make_plan(config, base, 10, "cpu").learning_rate == pytest.approx(rate)
