"""Out of memory: the run goes on with fewer rows at a time, and comes to the same end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from artifacts.adapter import WEIGHTS_FILE
from artifacts.database import Database
from artifacts.home import Home
from artifacts.registry import Registry
from tests.training.conftest import Recorder
from training.batches import Batch
from training.config import TrainingConfig, parse_config
from training.loop import MethodTrainer
from training.remedy import safe_remedy
from training.run import train_adapter
from training.signals import StopRequest


def config(**more: Any) -> TrainingConfig:
    return parse_config({"name": "a", "data": "x", "auto_remedy": True, **more})


@pytest.mark.parametrize(
    ("asked", "changes"),
    [
        ({"batch_size": 8}, {"batch_size": 4, "gradient_accumulation": 2}),
        ({"batch_size": 9}, {"batch_size": 3, "gradient_accumulation": 3}),
        (
            {"batch_size": 7, "gradient_accumulation": 2},
            {"batch_size": 1, "gradient_accumulation": 14},
        ),
        ({"batch_size": 1}, {"gradient_checkpointing": True}),
        ({"batch_size": 1, "gradient_checkpointing": True}, None),
        ({"batch_size": 8, "packing": True}, {"gradient_checkpointing": True}),
        ({"auto_remedy": False}, None),
    ],
)
def test_a_step_keeps_its_rows(asked: dict[str, Any], changes: dict[str, Any] | None) -> None:
    assert safe_remedy(config(**asked), "out_of_memory") == changes


def test_nothing_is_changed_for_other_failures() -> None:
    assert safe_remedy(config(), "gate") is None


def weights_of(settings: dict[str, Any]) -> dict[str, Any]:
    home = Home.open(Path(settings["home"]))
    version = Registry(home, Database(home.database_url)).get("tiny", 1)
    weights: dict[str, Any] = load_file(version.path / WEIGHTS_FILE)
    return weights


def test_a_run_without_memory_goes_on_and_ends_as_it_would_have(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roomy = settings | {"home": str(tmp_path / "roomy"), "output_dir": str(tmp_path / "r")}
    train_adapter(parse_config(roomy), Recorder(), StopRequest())
    whole = MethodTrainer.training_step

    def training_step(self: MethodTrainer, model: Any, batch: Batch, *rest: Any) -> Any:
        if len(batch["lengths"]) > 2 and self.state.global_step > 5:  # after a checkpoint
            raise MemoryError
        return whole(self, model, batch, *rest)

    monkeypatch.setattr(MethodTrainer, "training_step", training_step)
    recorder = Recorder()
    train_adapter(parse_config(settings | {"auto_remedy": True}), recorder, StopRequest())
    changes = [event["changes"] for event in recorder.of("remedy")]
    assert changes == [
        {"batch_size": 4, "gradient_accumulation": 2},
        {"batch_size": 2, "gradient_accumulation": 4},
    ]
    assert recorder.of("started")[-1]["resumed_from"] == "checkpoint-4"
    wanted = weights_of(roomy)
    for name, tensor in weights_of(settings).items():
        assert_close(tensor, wanted[name], rtol=1e-3, atol=1e-4)
