"""Whole runs on a tiny base: what is published, what a failure leaves, that a resume is exact."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from artifacts.base import load_transformers_model
from artifacts.database import Database
from artifacts.heldout import read_heldout
from artifacts.home import Home
from artifacts.registry import AdapterVersion, Registry
from tests.training.conftest import Recorder, rows
from training.config import parse_config
from training.errors import GateFailed, Interrupted, InvalidConfig
from training.evaluation import HeldOutLoss, held_out_loss
from training.heldout import heldout_row
from training.inputs import load_inputs
from training.methods.lora import Lora
from training.run import train_adapter
from training.signals import StopRequest


class Stopper(Recorder):
    """Asks the run to stop when it reports ``step``."""

    def __init__(self, stop: StopRequest, step: int) -> None:
        super().__init__()
        self._stop, self._step = stop, step

    def emit(self, event: dict[str, Any]) -> None:
        super().emit(event)
        if event["event"] == "progress" and event["step"] == self._step:
            self._stop.ask()


def train(settings: dict[str, Any], **more: Any) -> Recorder:
    recorder = Recorder()
    train_adapter(parse_config({**settings, **more}), recorder, StopRequest())
    return recorder


def interrupt(settings: dict[str, Any], step: int, **more: Any) -> Recorder:
    stop = StopRequest()
    recorder = Stopper(stop, step)
    with pytest.raises(Interrupted):
        train_adapter(parse_config({**settings, **more}), recorder, stop)
    return recorder


def registry(settings: dict[str, Any]) -> Registry:
    home = Home.open(settings["home"])
    return Registry(home, Database(home.database_url))


def versions(settings: dict[str, Any]) -> list[AdapterVersion]:
    return registry(settings).list()


def test_a_run_publishes_what_it_measured(settings: dict[str, Any]) -> None:
    """The published folder, loaded by PEFT, has the reported losses; the best weights were kept."""
    from peft import PeftModel

    recorder = train(settings)
    (version,) = versions(settings)
    (published,) = recorder.of("published")
    assert (published["adapter"], published["content_hash"]) == ("tiny@1", version.content_hash)
    registry(settings).verify("tiny", 1)

    inputs = load_inputs(parse_config(settings), Home.open(settings["home"]))
    model = PeftModel.from_pretrained(load_transformers_model(inputs.base), version.path)
    split, metrics = inputs.data.split, version.manifest.metrics
    assert held_out_loss(model, split.test, 3).loss == pytest.approx(metrics["adapter_loss"])
    best = min(event["validation_loss"] for event in recorder.of("evaluated"))
    assert held_out_loss(model, split.validation, 3).loss == pytest.approx(best)
    with model.disable_adapter():
        assert held_out_loss(model, split.test, 3).loss == pytest.approx(metrics["base_loss"])
    assert published["metrics"]["adapter_loss"] < published["metrics"]["base_loss"]
    assert version.manifest.data_hash == inputs.data.data_hash
    assert version.manifest.template_hash == inputs.base.template_hash
    text = (version.path / "adapter_config.json").read_text(encoding="utf-8")
    assert settings["base"] not in text  # portable: the base's id, no path
    kept = read_heldout(inputs.home, version.content_hash)
    assert kept == [heldout_row(example) for example in split.test]
    trained = {tuple(example.input_ids) for example in [*split.train, *split.validation]}
    assert not trained & {row.token_ids for row in kept}


def test_events_tell_the_whole_run_in_order(settings: dict[str, Any]) -> None:
    events = train(settings, save_steps=6).events
    (started,) = [event for event in events if event["event"] == "started"]
    assert (started["num_train"], started["num_validation"], started["num_test"]) == (32, 4, 4)
    assert [e["step"] for e in events if e["event"] == "progress"] == [2, 4, 6, 8, 10, 12, 14, 16]
    assert [e["step"] for e in events if e["event"] == "evaluated"] == [4, 8, 12, 16]
    assert [e["step"] for e in events if e["event"] == "checkpoint"] == [4, 6, 8, 12, 16]
    assert [events[0]["event"], events[-1]["event"]] == ["data_checked", "published"]
    assert json.loads(json.dumps(events)) == events


def test_it_says_that_it_publishes_before_it_touches_the_registry(
    settings: dict[str, Any],
) -> None:
    """Between the two a server may stop the process; afterwards it may hold the database's lock."""

    class Looker(Recorder):
        def emit(self, event: dict[str, Any]) -> None:
            super().emit(event)
            if event["event"] == "publishing":
                assert versions(settings) == []

    looker = Looker()
    train_adapter(parse_config(settings), looker, StopRequest())
    assert [event["event"] for event in looker.events[-2:]] == ["publishing", "published"]


def test_what_stays_of_a_run_is_its_version_and_its_logs(settings: dict[str, Any]) -> None:
    train(settings)
    run = Path(settings["output_dir"])
    assert sorted(path.name for path in run.iterdir()) == [
        "data_report.json",
        "lock",
        "logs",
        "loss.png",
    ]
    assert list((run / "logs").iterdir())
    assert not list(Home.open(settings["home"]).tmp.iterdir())
    train(settings)  # the folder is free for the next run
    assert [version.id for version in versions(settings)] == ["tiny@1", "tiny@2"]
    assert len({version.content_hash for version in versions(settings)}) == 1  # seeded


HARD = {"dropout": 0.2, "gradient_accumulation": 2, "batch_size": 3, "epochs": 3}


def test_a_resumed_run_is_the_uninterrupted_run(settings: dict[str, Any], tmp_path: Path) -> None:
    """Dropout, accumulation, a log window across the stop, early stopping: the same adapter."""
    more = HARD | {"early_stopping_patience": 2, "logging_steps": 3}
    whole = train(settings, **more, output_dir=str(tmp_path / "whole"))
    first = interrupt(settings, 3, **more)  # between two evaluations, inside an epoch
    second = interrupt(settings, 9, **more, resume=True)
    third = train(settings, **more, resume=True)
    told = [*first.events, *second.events, *third.events]
    for kind, figure in (("progress", "loss"), ("evaluated", "validation_loss")):
        assert [(e["step"], e[figure]) for e in told if e["event"] == kind] == [
            (e["step"], e[figure]) for e in whole.of(kind)
        ]
    one, other = versions(settings)
    assert one.content_hash == other.content_hash
    assert one.manifest.metrics == other.manifest.metrics


def test_patience_counts_evaluations_and_survives_a_resume(settings: dict[str, Any]) -> None:
    """No improvement exceeds the threshold: the first evaluation sets the mark, two more stop."""
    more = {"early_stopping_patience": 2, "early_stopping_threshold": 9.0, "eval_steps": 2}
    assert [e["step"] for e in train(settings, **more).of("evaluated")] == [2, 4, 6]
    interrupt(settings, 4, **more)
    assert [e["step"] for e in train(settings, **more, resume=True).of("evaluated")] == [6]
    one, other = versions(settings)
    assert one.content_hash == other.content_hash


def test_a_run_killed_after_its_early_stop_does_not_train_on(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from training import pipeline

    more = {"early_stopping_patience": 1, "early_stopping_threshold": 9.0, "eval_steps": 2}
    train(settings, **more)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "_evaluate", _killed)
        with pytest.raises(RuntimeError, match="killed"):
            train(settings, **more)
    assert not train(settings, **more, resume=True).of("progress")
    one, other = versions(settings)
    assert one.manifest.metrics == other.manifest.metrics
    assert one.content_hash == other.content_hash


def _killed(*_: Any) -> None:
    raise RuntimeError("killed")


def test_checkpointed_activations_give_the_same_adapter(settings: dict[str, Any]) -> None:
    train(settings)
    train(settings, gradient_checkpointing=True)
    one, other = versions(settings)
    assert one.content_hash == other.content_hash


def test_bfloat16_trains_and_passes_its_gate(settings: dict[str, Any]) -> None:
    train(settings, dtype="bfloat16", use_rslora=True)
    (version,) = versions(settings)
    assert version.manifest.settings["dtype"] == "bfloat16"


def test_without_a_validation_part_the_last_weights_are_published(settings: dict[str, Any]) -> None:
    recorder = train(settings, split=[0.8, 0, 0.2])
    assert not recorder.of("evaluated")
    assert versions(settings)[0].manifest.metrics["validation_loss"] is None


def registers_nothing(settings: dict[str, Any]) -> bool:
    home = Home.open(settings["home"])
    left = [*home.tmp.iterdir(), *home.adapters.iterdir()]
    return not versions(settings) and not left


def test_an_adapter_that_is_worse_than_the_base_gets_a_number_and_no_name(
    settings: dict[str, Any],
) -> None:
    """Each answer is another letter: what is learned from four makes the fifth less likely."""
    alone = [{"instruction": "Which?", "output": chr(65 + i) * 20} for i in range(5)]
    Path(settings["data"][0]).write_text(json.dumps(alone), encoding="utf-8")
    (published,) = train(settings, split=[0.8, 0, 0.2], max_steps=16).of("published")
    (version,) = versions(settings)
    assert [gate.name for gate in version.manifest.failed_gates] == ["held_out_loss"]
    assert (published["gate"], len(published["failed_gates"])) == ("failed", 1)
    assert registry(settings).aliases("tiny") == {}


def test_a_held_out_loss_that_is_not_a_number_registers_nothing(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from training import pipeline

    nothing = HeldOutLoss(math.nan, 1)
    monkeypatch.setattr(pipeline, "held_out_loss", lambda *_: nothing)
    with pytest.raises(GateFailed, match="held-out loss of the adapter is nan"):
        train(settings)
    assert registers_nothing(settings)


def test_the_strict_profile_says_what_it_could_not_measure(settings: dict[str, Any]) -> None:
    train(settings, gate="strict")
    (version,) = versions(settings)
    gates = {gate.name: gate.passed for gate in version.manifest.gates}
    assert gates == {
        "effect": True,
        "parity": True,
        "held_out_loss": True,
        "perplexity_drop": True,
        "task_metric": None,
        "bleu4": None,
        "robustness": None,
        "forgetting": None,
    }
    assert version.is_fit


def test_a_diverged_run_ends_at_once_and_registers_nothing(settings: dict[str, Any]) -> None:
    with pytest.raises(GateFailed, match="lower learning_rate"):
        train(settings, learning_rate=1e30, max_grad_norm=0)
    assert registers_nothing(settings)


def test_a_saved_adapter_that_is_not_the_trained_one_is_caught(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    save = Lora.save

    def save_other(method: Lora, model: Any, folder: Path) -> None:
        with torch.no_grad():
            one = dict(model.named_parameters())[
                "base_model.model.model.layers.1.mlp.up_proj.lora_B.default.weight"
            ]
            one.mul_(1.01)
            save(method, model, folder)
            one.div_(1.01)

    monkeypatch.setattr(Lora, "save", save_other)
    with pytest.raises(GateFailed, match="saved adapter is not the trained one"):
        train(settings)
    assert not versions(settings)


def test_targets_are_checked_by_name(settings: dict[str, Any]) -> None:
    recorder = train(settings, target_modules=["q_proj", "layers.1.mlp.up_proj"])
    (version,) = versions(settings)
    assert version.manifest.target_modules == ("q_proj", "up_proj")
    assert recorder.of("started")[0]["trainable_parameters"] == version.manifest.num_parameters
    with pytest.raises(InvalidConfig, match=r"did you mean 'q_proj'.*available: down_proj, gate"):
        train(settings, target_modules=["v_proj", "query_proj"])


def test_other_data_under_a_checkpoint_is_refused(settings: dict[str, Any]) -> None:
    interrupt(settings, 4)
    Path(settings["data"][0]).write_text(json.dumps(rows(41)), encoding="utf-8")
    with pytest.raises(InvalidConfig, match="data_hash"):
        train(settings, resume=True)


def test_a_base_without_a_chat_template_is_refused_once(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    bare = shutil.copytree(settings["base"], tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    with pytest.raises(InvalidConfig, match="bare has no chat template"):
        train(settings, base=str(bare))


def test_more_length_than_context_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfig, match="context of 256"):
        train(settings, max_length=257)
