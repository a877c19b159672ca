"""Training on from a version: its weights, its rank and scaling, and nobody else's base."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from artifacts.errors import NotFound
from tests.training.conftest import Recorder, rows
from tests.training.methods.runs import served, train, unreadable, versions
from tests.training.test_run import interrupt
from training.config import parse_config
from training.errors import InvalidConfig
from training.run import train_adapter
from training.signals import StopRequest


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """A home with one version: rank 4, alpha 6, attention only, rsLoRA."""
    folder = tmp_path_factory.mktemp("trained")
    data = folder / "rows.json"
    data.write_text(json.dumps(rows(40)), encoding="utf-8")
    more = {"rank": 4, "alpha": 6, "target_modules": ["q_proj", "v_proj"], "use_rslora": True}
    train({"name": "tiny", "base": str(tiny_base), "home": str(folder / "home"),
           "data": [str(data)], "learning_rate": 0.01, "epochs": 2, **more})  # fmt: skip
    return folder / "home"


@pytest.fixture
def first(settings: dict[str, Any], trained: Path) -> dict[str, Any]:
    """Settings of a second run in that home."""
    shutil.copytree(trained, settings["home"])
    return {key: value for key, value in settings.items() if key != "rank"}


def refuse(settings: dict[str, Any], match: str, **more: Any) -> None:
    recorder = Recorder()
    config = parse_config(
        {**settings, "data": unreadable(settings), **more}
    )  # the data is not read
    with pytest.raises(InvalidConfig, match=match):
        train_adapter(config, recorder, StopRequest())
    assert recorder.events == []


def test_a_run_goes_on_where_the_version_stands(first: dict[str, Any]) -> None:
    """One step with a tiny rate: the start's loss is the start version's, and hardly moves."""
    train(first, start_from="tiny@1", max_steps=1, learning_rate=1e-7)
    one, two = versions(first)
    weights = served(first, two.path)
    assert (weights.rank, weights.alpha, weights.target_modules) == (4, 6, ("q_proj", "v_proj"))
    assert weights.config["use_rslora"] is True
    assert two.manifest.settings["start_from"] == "tiny@1"
    losses = one.manifest.metrics, two.manifest.metrics
    assert losses[1]["start_loss"] == pytest.approx(losses[0]["adapter_loss"], rel=1e-6)
    assert losses[1]["adapter_loss"] == pytest.approx(losses[0]["adapter_loss"], rel=1e-4)
    assert losses[1]["base_loss"] == pytest.approx(losses[0]["base_loss"], rel=1e-6)


@pytest.mark.parametrize("given", ["tiny@champion", "folder"])
def test_every_way_to_name_it(first: dict[str, Any], given: str, tmp_path: Path) -> None:
    if given == "folder":
        given = str(shutil.copytree(versions(first)[0].path, tmp_path / "elsewhere"))
    train(first, start_from=given, max_steps=2)
    assert versions(first)[1].manifest.metrics["start_loss"] is not None


def test_a_resumed_continuation_is_the_uninterrupted_one(
    first: dict[str, Any], tmp_path: Path
) -> None:
    more = {"start_from": "tiny@1", "dropout": 0.1, "max_steps": 8}
    train(first, **more, output_dir=str(tmp_path / "whole"))
    interrupt(first, 6, **more)
    train(first, **more, resume=True)
    _, two, three = versions(first)
    assert two.content_hash == three.content_hash
    assert two.manifest.metrics == three.manifest.metrics


@pytest.mark.parametrize(
    ("key", "value"),
    [("rank", 8), ("alpha", 3.0), ("target_modules", ["k_proj"]), ("use_rslora", False)],
)
def test_a_key_that_contradicts_it_is_refused_by_name(
    first: dict[str, Any], key: str, value: Any
) -> None:
    refuse(first, rf"{key}=.* contradicts start_from=tiny@1.*leave {key} out",
           start_from="tiny@1", **{key: value})  # fmt: skip


def test_what_cannot_be_continued_is_refused(
    first: dict[str, Any], tmp_path: Path, tiny_base: Path
) -> None:
    refuse(first, "neither a folder here nor an adapter", start_from="no/such/folder")
    other = shutil.copytree(tiny_base, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-4}))
    refuse(first, "base_mismatch", start_from="tiny@1", base=str(other))
    with pytest.raises(NotFound, match="tiny@7"):
        train(first, start_from="tiny@7")


def test_other_weights_under_a_checkpoint_are_refused(first: dict[str, Any]) -> None:
    """The same alias may mean another version by the time of the resume."""
    interrupt(first, 2, start_from="tiny@latest")
    Path(first["data"][0]).write_text(json.dumps(rows(40)), encoding="utf-8")
    train(first, output_dir=first["output_dir"] + "-2", rank=4, max_steps=2)
    with pytest.raises(InvalidConfig, match=r"start_hash|alpha"):
        train(first, start_from="tiny@latest", resume=True)
