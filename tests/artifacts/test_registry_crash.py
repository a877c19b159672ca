"""A process killed anywhere in publish or remove leaves whole versions and nothing else."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from artifacts.database import Database
from artifacts.home import Home
from artifacts.registry import Registry
from tests.artifacts.crash import run_until_effect
from tests.artifacts.drafts import DRAFT, adapter_folder

MEMORY = Path("/dev/shm")  # kill -9 loses nothing that was written, so fsync need not cost


@pytest.fixture
def home() -> Iterator[Home]:
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        yield Home.open(folder)


def open_registry(home: Home) -> Registry:
    return Registry(home, Database(home.database_url))


def publish(home: Home, name: str) -> Callable[[], object]:
    folder = adapter_folder(Path(tempfile.mkdtemp(dir=home.tmp)) / "new")
    return partial(open_registry(home).publish, name, folder, DRAFT)


def versions_after_recover(home: Home) -> list[str]:
    """Rows and folders agree, and every version is whole."""
    registry = open_registry(home)
    registry.recover()
    versions = registry.list()
    on_disk = {f"{path.parent.name}@{path.name}" for path in home.adapters.glob("*/*")}
    assert on_disk == {version.id for version in versions}
    assert list(home.adapters.glob("*/*/.unpublished")) == []
    for version in versions:
        registry.verify(version.name, version.version)
    registry.database.close()
    return [version.id for version in versions]


def test_publish_killed_before_any_effect_is_all_or_nothing(home: Home) -> None:
    publish(home, "a")()
    before, outcomes = ["a@1"], set()
    for count in itertools.count(1):
        is_finished = run_until_effect(publish(home, "a"), home.root, count)
        after = versions_after_recover(home)
        new = after[len(before) :]
        assert after[: len(before)] == before
        assert [int(id_.removeprefix("a@")) > before_highest(before) for id_ in new] in ([], [True])
        assert open_registry(home).aliases("a") == {"champion": 1}
        outcomes.add(len(new))
        before = after
        if is_finished:
            break
    assert outcomes == {0, 1}
    assert count > 20  # it was really stopped inside


def before_highest(ids: list[str]) -> int:
    return max(int(id_.removeprefix("a@")) for id_ in ids)


def test_first_publish_killed_before_any_effect_registers_name_and_champion_together(
    home: Home,
) -> None:
    for count in itertools.count(1):
        name = f"n{count}"
        is_finished = run_until_effect(publish(home, name), home.root, count)
        is_published = f"{name}@1" in versions_after_recover(home)
        registry = open_registry(home)
        assert registry.aliases(name) == ({"champion": 1} if is_published else {})
        if is_published:
            registry.remove(name, 1, force=True)
        if is_finished:
            break


def test_remove_killed_before_any_effect_is_all_or_nothing_and_frees_no_number(home: Home) -> None:
    publish(home, "a")()
    registry = open_registry(home)
    highest = 1
    for count in itertools.count(1):
        publish(home, "a")()
        newest = registry.list()[-1].version
        assert newest > highest
        highest = newest
        remove = partial(open_registry(home).remove, "a", highest)
        is_finished = run_until_effect(remove, home.root, count)
        after = versions_after_recover(home)
        if is_finished:
            assert f"a@{highest}" not in after
            break
