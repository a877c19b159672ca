"""Stages: each a whole run from what the last one published; a resume skips the finished ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from artifacts.base import open_base
from artifacts.home import Home
from tests.training.conftest import Recorder
from tests.training.methods.runs import versions
from training.config import TrainingConfig, read_settings
from training.errors import Interrupted, InvalidConfig
from training.events import Reporter
from training.outcome import Outcome
from training.run import train_adapter
from training.signals import StopRequest
from training.stages import parse_stages, run_stages


def staged(settings: dict[str, Any], *stages: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {**settings, "epochs": 2, **more, "stages": list(stages)}


def run(settings: dict[str, Any]) -> Recorder:
    recorder = Recorder()
    run_stages(parse_stages(settings), train_adapter, recorder, StopRequest())
    return recorder


def domain_file(settings: dict[str, Any]) -> str:
    path = Path(settings["data"][0]).with_name("domain.json")
    rows = [{"instruction": f"And {i}?", "output": f"That is {i}."} for i in range(20)]
    path.write_text(json.dumps(rows), encoding="utf-8")
    return str(path)


def test_a_stage_continues_the_last_ones_adapter(settings: dict[str, Any]) -> None:
    """General rows, then those of a domain; the first stage's rank holds for both."""
    recorder = run(staged(settings, {"alpha": 3}, {"data": [domain_file(settings)]}, rank=2))
    one, two = versions(settings)
    assert two.manifest.settings["start_from"] == one.id == "tiny@1"
    assert (two.manifest.rank, two.manifest.alpha) == (2, 3)
    assert two.manifest.settings["data"][0]["file"] == "domain.json"
    assert "start_loss" in two.manifest.metrics
    assert {event["stage"] for event in recorder.events} == {1, 2}
    kinds = [event["event"] for event in recorder.events if "published" in event["event"]]
    assert kinds == ["stage_published", "published"]
    root = Path(settings["output_dir"])
    assert sorted(path.name for path in root.iterdir()) == ["stage-1", "stage-2"]
    assert not list(root.glob("stage-*/finished.json"))


def test_a_whole_model_is_the_next_stages_base(settings: dict[str, Any]) -> None:
    del settings["rank"]
    run(staged(settings, {"method": "full", "learning_rate": 3e-3}, {"rank": 2, "name": "top"}))
    model = open_base(Home.open(settings["home"]).models / "tiny@1")
    (version,) = versions(settings)
    assert (version.id, version.manifest.base_fingerprint) == ("top@1", model.fingerprint)


class Train:
    """Publishes without training, and is interrupted in the second stage, once."""

    def __init__(self) -> None:
        self.seen: list[tuple[str | None, str]] = []

    def __call__(self, config: TrainingConfig, reporter: Reporter, stop: StopRequest) -> Outcome:
        assert config.output_dir is not None
        config.output_dir.mkdir(parents=True, exist_ok=True)
        self.seen.append((config.start_from, config.output_dir.name))
        if len(self.seen) == 2:
            raise Interrupted(3)
        id_ = f"tiny@{len(self.seen)}"
        return Outcome("adapter", id_, config.output_dir, "hash", {"base_loss": 2.0})


def test_a_resume_skips_the_finished_stages(settings: dict[str, Any]) -> None:
    asked = staged(settings, {}, {"learning_rate": 1e-3})
    train, stop = Train(), StopRequest()
    with pytest.raises(Interrupted):
        run_stages(parse_stages(asked), train, Recorder(), stop)
    with pytest.raises(InvalidConfig, match="finished stage of an earlier run; resume=true"):
        run_stages(parse_stages(asked), train, Recorder(), stop)
    other = {**asked, "resume": True, "stages": [{"dropout": 0.5}, {"learning_rate": 1e-3}]}
    with pytest.raises(InvalidConfig, match=r"stage 1 was finished with dropout=0\.0"):
        run_stages(parse_stages(other), train, Recorder(), stop)
    run_stages(parse_stages({**asked, "resume": True}), train, Recorder(), stop)
    assert train.seen == [(None, "stage-1"), ("tiny@1", "stage-2"), ("tiny@1", "stage-2")]


def test_overwrite_starts_over(settings: dict[str, Any]) -> None:
    asked = staged(settings, {}, {})
    train = Train()
    with pytest.raises(Interrupted):
        run_stages(parse_stages(asked), train, Recorder(), StopRequest())
    overwritten = parse_stages({**asked, "resume": "overwrite"})
    run_stages(overwritten, train, Recorder(), StopRequest())
    assert [folder for _, folder in train.seen] == ["stage-1", "stage-2", "stage-1", "stage-2"]


def test_an_unfit_stage_is_the_last_one(settings: dict[str, Any], tmp_path: Path) -> None:
    begun: list[str] = []

    def train(config: TrainingConfig, reporter: Reporter, stop: StopRequest) -> Outcome:
        assert config.output_dir is not None
        begun.append(config.output_dir.name)
        return Outcome("adapter", "tiny@1", tmp_path, "hash", {}, "failed", ("held_out_loss",))

    outcome = run_stages(parse_stages(staged(settings, {}, {})), train, Recorder(), StopRequest())
    assert not outcome.is_fit
    assert begun == ["stage-1"]


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([{}, {"start_from": "a@1"}], "stage 2: start_from is what stage 1 publishes"),
        ([{}, {"base": "b"}], "stage 2: base is what stage 1 publishes"),
        ([{"output_dir": "x"}], "stage 1: output_dir belongs beside stages"),
        ([{}, {"method": "full"}], "stage 2: method=full cannot start from the adapter of stage 1"),
        ([{}, {"method": "adalora"}], "stage 2: method=adalora cannot start from the adapter"),
        ([{}, {"rnak": 3}], "stage 2: unknown configuration key 'rnak'; did you mean 'rank'"),
        ([{}, {"dpo_beta": 0.2}], "stage 2: dpo_beta=0.2: belongs to objective=dpo"),
        ([], "stages must be a list"),
        ([3], "stages must be a list"),
    ],
)
def test_a_mistake_names_its_stage_before_the_first_begins(
    settings: dict[str, Any], stages: list[Any], message: str
) -> None:
    with pytest.raises(InvalidConfig) as caught:
        parse_stages({**settings, "stages": stages})
    assert message in str(caught.value)
    assert not Path(settings["output_dir"]).exists()


def test_overrides_apply_to_the_top_level(settings: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "two.yaml"
    path.write_text(yaml.safe_dump({**settings, "stages": [{"epochs": 1}, {}]}))
    read, _ = read_settings(path, ["epochs=7", "seed=3"])
    first, second = parse_stages(read)
    assert [stage.config.epochs for stage in (first, second)] == [1, 7]
    assert [stage.config.seed for stage in (first, second)] == [3, 3]


def test_the_documentations_stages_are_stages() -> None:
    page = (Path(__file__).parents[3] / "docs" / "training.md").read_text(encoding="utf-8")
    block = page.split("```yaml\n")[1].split("```")[0]
    stages = parse_stages(yaml.safe_load(block))
    assert [stage.config.objective for stage in stages] == ["sft", "sft", "dpo"]
