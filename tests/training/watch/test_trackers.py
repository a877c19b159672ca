"""Trackers by name: refused while they are not installed, fed where they are."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.training.test_run import train
from training.config import parse_config
from training.errors import InvalidConfig
from training.watch.trackers import check_trackers, tracker_callbacks


@pytest.mark.parametrize("tracker", ["mlflow", "wandb", "swanlab"])
def test_a_tracker_that_is_not_installed_is_refused_with_the_remedy(
    tracker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.watch.trackers.find_spec", lambda _: None)
    config = parse_config({"name": "a", "data": "x", "trackers": [tracker]})
    with pytest.raises(InvalidConfig, match=rf"pip install 'loraloop\[{tracker}\]'") as caught:
        check_trackers(config)
    assert caught.value.param == "trackers"


def test_a_missing_tracker_stops_a_run_before_its_data_are_read(settings: dict[str, Any]) -> None:
    missing = [name for name in ("mlflow", "wandb", "swanlab") if find_spec(name) is None]
    if not missing:
        pytest.skip("all trackers are installed here")
    with pytest.raises(InvalidConfig, match="not installed"):
        train(settings, trackers=missing, data=["nowhere.json"])


def test_each_name_brings_its_own_callback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers.integrations as integrations

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "kept")
    monkeypatch.setenv("WANDB_DIR", "kept")
    names = {"mlflow": "MLflowCallback", "wandb": "WandbCallback", "swanlab": "SwanLabCallback"}
    for tracker, callback in names.items():
        monkeypatch.setattr(integrations, callback, lambda tracker=tracker: tracker)
    config = SimpleNamespace(trackers=("swanlab", "mlflow", "wandb"))
    assert tracker_callbacks(config, tmp_path, 0) == ["swanlab", "mlflow", "wandb"]  # type: ignore[arg-type]
    assert tracker_callbacks(SimpleNamespace(trackers=()), tmp_path, 0) == []  # type: ignore[arg-type]


def test_tensorboard_holds_the_losses_and_can_be_left_out(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(settings, max_steps=4)
    logs = Path(settings["output_dir"]) / "logs"
    curves = EventAccumulator(str(logs)).Reload()
    assert [point.step for point in curves.Scalars("train/loss")] == [1, 2, 3, 4]
    assert curves.Scalars("eval/loss")
    without = str(tmp_path / "without")
    train(settings, max_steps=4, trackers=[], output_dir=without)
    assert not (Path(without) / "logs").exists()


def test_a_run_leaves_a_plot_of_its_losses(settings: dict[str, Any]) -> None:
    train(settings, max_steps=4)
    plot = (Path(settings["output_dir"]) / "loss.png").read_bytes()
    assert plot.startswith(b"\x89PNG")
    assert len(plot) > 5000  # curves, not an empty canvas
