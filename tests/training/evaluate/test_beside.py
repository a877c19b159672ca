"""A suite at the end of a training run: what the manifest, the gates and the card take from it."""

from __future__ import annotations

from tests.training.evaluate.conftest import World


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
