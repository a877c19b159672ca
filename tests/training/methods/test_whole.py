"""Full fine-tuning and freeze: a whole model, published wholly or not at all, a base of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from artifacts.base import load_transformers_model, open_base
from artifacts.home import Home
from artifacts.safe_write import sha256_file
from tests.training.methods.runs import answer, losses, train, versions
from tests.training.test_run import interrupt
from training.config import parse_config
from training.errors import GateFailed
from training.evaluation import held_out_loss
from training.inputs import load_inputs
from training.methods.whole import WholeModel
from training.plan import make_plan

FULL: dict[str, Any] = {"method": "full", "learning_rate": 3e-3}
FREEZE: dict[str, Any] = {"method": "freeze", "trainable_layers": 1, "learning_rate": 1e-2}


@pytest.fixture(params=["full", "freeze"])
def run(request: pytest.FixtureRequest, settings: dict[str, Any]) -> dict[str, Any]:
    del settings["rank"]
    return settings | (FULL if request.param == "full" else FREEZE)


def published(settings: dict[str, Any], number: int = 1) -> Path:
    return Home.open(settings["home"]).models / f"tiny@{number}"


def test_it_learns_and_is_published_as_a_base_of_its_own(run: dict[str, Any]) -> None:
    recorder = train(run)
    told = losses(recorder)
    assert told[-1] < 0.95 * told[0]
    folder = published(run)
    (event,) = recorder.of("published")
    assert (event["model"], event["path"]) == ("tiny@1", str(folder))
    assert "adapter" not in event
    assert versions(run) == []

    base, model = open_base(run["base"]), open_base(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["fingerprint"] == model.fingerprint == event["content_hash"]
    assert manifest["base_fingerprint"] == base.fingerprint != model.fingerprint
    assert model.template_hash == base.template_hash
    assert manifest["settings"]["method"] == run["method"]
    assert {name: sha256_file(folder / name) for name in manifest["files"]} == manifest["files"]
    assert "A whole model made from" in (folder / "README.md").read_text(encoding="utf-8")

    test = load_inputs(parse_config(run), Home.open(run["home"])).data.split.test
    fresh, before = load_transformers_model(model), load_transformers_model(base)
    metrics = manifest["metrics"]
    assert held_out_loss(fresh, test, 3).loss == pytest.approx(metrics["model_loss"])
    assert held_out_loss(before, test, 3).loss == pytest.approx(metrics["base_loss"])
    assert metrics["model_loss"] < metrics["base_loss"]
    assert answer(fresh, folder, "What is 3?") != answer(before, run["base"], "What is 3?")


@pytest.mark.parametrize(("count", "trained"), [(1, {1}), (-1, {0})])
def test_freeze_moves_only_the_layers_it_names(
    settings: dict[str, Any], count: int, trained: set[int]
) -> None:
    """Embeddings, the last norm and the other layers are the base's own, bit by bit."""
    del settings["rank"]
    train(settings, **FREEZE | {"trainable_layers": count}, max_steps=2, eval_steps=1)
    before, after = (
        load_transformers_model(open_base(folder)).state_dict()
        for folder in (settings["base"], published(settings))
    )
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    layers = {int(name.split(".")[2]) for name in moved if name.startswith("model.layers.")}
    assert layers == trained
    assert all(name.startswith("model.layers.") for name in moved)


def test_a_resumed_run_is_the_uninterrupted_run(settings: dict[str, Any], tmp_path: Path) -> None:
    more = FULL | {"max_steps": 8}
    del settings["rank"]
    train(settings, **more, output_dir=str(tmp_path / "whole"))
    interrupt(settings, 6, **more)
    train(settings, **more, resume=True)
    one, other = (open_base(published(settings, number)).fingerprint for number in (1, 2))
    assert one == other


def test_bfloat16_trains_float32_weights(settings: dict[str, Any]) -> None:
    del settings["rank"]
    train(settings, **FULL, dtype="bfloat16", max_steps=4)
    base = open_base(settings["base"])
    config = parse_config({**settings, **FREEZE, "dtype": "bfloat16"})
    model = WholeModel(config, base, make_plan(config, base.config, 4, "cpu")).build()
    kinds = {p.requires_grad: p.dtype for p in model.parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}


def test_what_fails_its_gate_leaves_nothing(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    del settings["rank"]
    alone = [{"instruction": "Which?", "output": chr(65 + i) * 20} for i in range(5)]
    worse = Path(settings["output_dir"]).with_name("worse.json")
    worse.write_text(json.dumps(alone), encoding="utf-8")
    with pytest.raises(GateFailed, match=r"held-out loss of the model .* is not below the base's"):
        train(settings, **FULL, data=[str(worse)], split=[0.8, 0, 0.2], max_steps=16)
    save = WholeModel.save

    def save_other(method: WholeModel, model: Any, folder: Path) -> None:
        with torch.no_grad():
            weight = model.model.layers[0].mlp.up_proj.weight
            weight.mul_(1.05)
            save(method, model, folder)
            weight.div_(1.05)

    monkeypatch.setattr(WholeModel, "save", save_other)
    settings["output_dir"] += "-2"
    with pytest.raises(GateFailed, match="the saved model is not the trained one"):
        train(settings, **FULL)
    home = Home.open(settings["home"])
    assert not home.models.exists()
    assert not list(home.tmp.iterdir())
