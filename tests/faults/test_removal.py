"""A version that somebody still needs cannot be removed, not even from another process.

There is no HTTP route that removes a version: `loraloop adapters remove` does, beside the server.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from typer.testing import CliRunner

from artifacts.cli import adapters_app
from artifacts.database import Database
from artifacts.errors import Conflict, NotFound
from artifacts.home import Home
from artifacts.registry import AdapterVersion, Registry
from server.comparison.experiments import Arm, Experiments

Publish = Callable[[str], AdapterVersion]
BASE_ARM = Arm("tiny-base", 1)


@pytest.fixture
def experiments(registry: Registry, publish: Publish) -> Experiments:
    for _ in range(3):
        publish("shop")
    return Experiments(registry.database)


def remove(home: Home, *arguments: str) -> str:
    """What the command says, having failed."""
    result = CliRunner().invoke(adapters_app, ["remove", *arguments, "--home", str(home.root)])
    assert result.exit_code == 1, result.output
    return result.output


@pytest.mark.parametrize("options", [[], ["--force"]])
def test_an_arm_of_a_running_experiment_stays(
    home: Home, registry: Registry, experiments: Experiments, options: list[str]
) -> None:
    experiments.put("shop", [Arm("shop@1", 1), Arm("shop@2", 1), BASE_ARM])
    said = remove(home, "shop@2", *options)
    assert said == (
        "error: shop@2 is in use by experiment shop; end or change that first, then remove the "
        "version\n"
    )
    registry.verify("shop", 2)
    registry.remove("shop", 3)  # not an arm


def test_an_arm_may_go_once_the_experiment_has_other_arms_or_ended(
    registry: Registry, experiments: Experiments
) -> None:
    experiments.put("shop", [Arm("shop@1", 1), Arm("shop@2", 1)])
    experiments.put("shop", [Arm("shop@1", 1), Arm("shop@3", 1)])
    registry.remove("shop", 2)
    with pytest.raises(Conflict, match="experiment shop"):
        registry.remove("shop", 3)
    experiments.delete("shop")
    registry.remove("shop", 3)
    assert [version.id for version in registry.list()] == ["shop@1"]


def test_an_experiment_cannot_begin_with_a_version_that_is_gone(
    registry: Registry, experiments: Experiments
) -> None:
    registry.remove("shop", 2)
    with pytest.raises(NotFound, match="there is no adapter shop@2"):
        experiments.put("shop", [Arm("shop@1", 1), Arm("shop@2", 1)])
    assert experiments.all() == []
    registry.remove("shop", 3)  # the refused one holds nothing
    assert Experiments(Database(registry.home.database_url)).all() == []
