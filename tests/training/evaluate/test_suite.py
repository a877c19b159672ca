"""A suite's YAML: what it may say, and what a mistake in it is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.training.evaluate.conftest import write_suite
from training.errors import InvalidConfig
from training.evaluate.suite import load_suite

ROOT = Path(__file__).resolve().parents[3]

BAD_SUITES: list[tuple[dict[str, Any], str]] = [
    ({"tasks": [], "general": None}, "neither tasks nor a general set"),
    ({"taks": []}, "taks: Extra inputs"),
    ({"tasks": [{"name": "a b", "kind": "perplexity", "data": "x"}]}, r"tasks.0.name='a b'"),
    ({"tasks": [{"name": "a", "kind": "guess", "data": "x"}]}, "kind='guess'"),
    ({"tasks": [{"name": "a", "kind": "perplexity"}]}, "tasks.0.data: Field required"),
    (
        {"tasks": [{"name": "a", "kind": "perplexity", "data": "x", "max_new_tokens": 4}]},
        "max_new_tokens is for tasks that generate",
    ),
    (
        {"tasks": [{"name": "a", "kind": "generation", "data": "x", "labels": ["a", "b"]}]},
        "labels are for classification",
    ),
    (
        {"tasks": [{"name": "a", "kind": "generation", "data": "x", "system": "{labels}"}]},
        "only classification has",
    ),
    (
        {"tasks": [{"name": "a", "kind": "generation", "data": {"path": "x", "weight": 2}}]},
        "a suite has no use for it",
    ),
    ({"tasks": [{"name": "a", "kind": "perplexity", "data": "x"}] * 2}, "two tasks are named 'a'"),
]


@pytest.mark.parametrize(("changes", "says"), BAD_SUITES)
def test_a_mistake_in_a_suite_names_file_key_and_value(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    path = write_suite(tmp_path, tmp_path / "x", **changes)
    with pytest.raises(InvalidConfig, match=says) as caught:
        load_suite(path)
    assert str(path) in str(caught.value)


def test_the_suites_of_the_documentation_load(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    blocks = [block.split("```")[0] for block in text.split("```yaml\n")[1:]]
    (documented,) = [block for block in blocks if "tasks:" in block]
    path = tmp_path / "suite.yaml"
    path.write_text(documented, encoding="utf-8")
    assert [task.kind for task in load_suite(path).tasks] == [
        "classification",
        "generation",
        "perplexity",
    ]
    assert load_suite(ROOT / "examples" / "banking77.yaml").tasks[0].robustness is not None


def test_a_key_given_twice_in_a_suite_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "suite.yaml"
    path.write_text("name: a\nname: b\n", encoding="utf-8")
    with pytest.raises(InvalidConfig, match="'name' appears twice"):
        load_suite(path)


def test_relative_data_lies_below_the_folder_that_is_named(tmp_path: Path) -> None:
    tasks = [{"name": "t", "kind": "perplexity", "data": "rows.json"}]
    path = write_suite(tmp_path, Path("rows.json"), tasks=tasks)
    below = load_suite(path, tmp_path / "there")
    assert below.tasks[0].data.path == str(tmp_path / "there" / "rows.json")
    assert load_suite(path).tasks[0].data.path == "rows.json"
    hub = yaml.safe_load(path.read_text()) | {"tasks": [tasks[0] | {"data": "hub:a/b"}]}
    path.write_text(yaml.safe_dump(hub))
    assert load_suite(path, tmp_path).tasks[0].data.path == "hub:a/b"
