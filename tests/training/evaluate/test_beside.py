"""A suite at the end of a training run: what the manifest, the gates and the card take from it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from artifacts.errors import InvalidData
from artifacts.home import Home
from tests.training.evaluate.conftest import World
from training.config import parse_config
from training.errors import InvalidConfig
from training.inputs import load_inputs


def test_the_manifest_keeps_what_the_suite_found(world: World) -> None:
    (version,) = world.registry.list()
    found = version.manifest.evaluation
    assert found is not None
    assert found.suite == "colours"
    say, chat, rows = found.tasks
    assert say.figures["adapter"]["accuracy"] == 1.0
    assert say.figures["base"]["accuracy"] == 0.0
    (gain,) = [each for each in say.differences if each.metric == "accuracy"]
    assert (gain.difference, gain.low, gain.high) == (1.0, 1.0, 1.0)
    assert set(say.robustness["adapter"]) == {"typos", "punctuation", "case", "homophones"}
    assert chat.figures["adapter"]["exact_match"] == 1.0
    assert rows.figures["adapter"]["loss"] < rows.figures["base"]["loss"]
    assert found.forgetting is not None
    assert found.forgetting < 0  # the general set is what it learned
    told = [(e["subject"], e["suite"]) for e in world.events.of("suite")]
    assert told == [("adapter", "colours"), ("base", "colours")]


def test_the_strict_gate_judges_by_the_suite(world: World) -> None:
    (version,) = world.registry.list()
    gates = {gate.name: gate for gate in version.manifest.gates}
    assert gates["task_metric:say"].passed
    assert gates["task_metric:say"].detail == "accuracy rose from 0 to 1"
    assert gates["forgetting"].passed
    assert gates["robustness:chat"].passed is None
    assert gates["robustness:chat"].detail == "the task asks for no noise"
    assert gates["robustness:say"].value is not None
    # single words have no 4-grams: BLEU-4 cannot reach the threshold, and the version says so
    assert gates["bleu4:chat"].passed is False
    assert version.manifest.gate == "failed"
    assert str(world.data) not in version.manifest.model_dump_json()


def test_the_card_of_a_trained_version_tells_all_of_it(world: World) -> None:
    (version,) = world.registry.list()
    card = (version.path / "README.md").read_text(encoding="utf-8")
    matter = yaml.safe_load(card.split("---\n", 2)[1])
    assert matter["license"] == "cc-by-4.0"
    assert matter["language"] == ["en"]
    assert matter["metrics"] == ["perplexity", "bleu", "rouge", "exact_match", "accuracy", "f1"]
    for text in (
        "| colours.json | `",
        "| num rows | 40 |",
        "### say: classification, 12 rows",
        "+1.0000 [+1.0000, +1.0000]",
        "| bleu4:chat | **failed** |",
        "Knows two colours.",
    ):
        assert text in card, text
    assert str(world.data.parent) not in card  # no path of this machine


def test_a_suite_beside_a_whole_model_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="is for adapters"):
        parse_config({"name": "x", "data": ["x"], "method": "full", "suite": "s.yaml"})


def test_a_mistake_in_a_suite_is_told_before_training(world: World, tmp_path: Path) -> None:
    suite = tmp_path / "suite.yaml"
    suite.write_text("name: a\ntasks: [{name: t, kind: perplexity, data: nowhere.json}]\n")
    settings = {"name": "x", "base": str(world.base), "home": str(tmp_path / "home")}
    config = parse_config(settings | {"data": [str(world.data)], "suite": str(suite)})
    with pytest.raises(InvalidData, match=r"nowhere\.json"):
        load_inputs(config, Home.open(tmp_path / "home"))
