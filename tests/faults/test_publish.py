"""A version whose disk or database fails while it is registered: nothing of it, or all of it."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from artifacts import registry as registry_module
from artifacts.cli import adapters_app
from artifacts.errors import StorageError, StorageFull, StorageReadOnly
from artifacts.registry import AdapterVersion, Registry
from tests.artifacts.drafts import DRAFT, adapter_folder
from tests.conftest import TinyBase
from tests.faults.storage import failing_disk, read_only_database

Publish = Callable[[str], AdapterVersion]
MARKS = {".unpublished", "manifest.json", "README.md"}


def weights_of(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - MARKS


def whole(registry: Registry, *ids: str) -> None:
    """Rows and folders agree, every version is as recorded, and nothing lies about."""
    assert [version.id for version in registry.list()] == list(ids)
    on_disk = {f"{path.parent.name}@{path.name}" for path in registry.home.adapters.glob("*/*")}
    assert on_disk == set(ids)
    for version in registry.list():
        registry.verify(version.name, version.version)


@pytest.mark.parametrize(
    ("number", "error"), [(errno.ENOSPC, StorageFull), (errno.EROFS, StorageReadOnly)]
)
def test_a_disk_that_fails_leaves_the_folder_where_it_was(
    registry: Registry, publish: Publish, number: int, error: type[StorageError]
) -> None:
    publish("shop")
    folder = adapter_folder(registry.home.tmp / "new")
    before = weights_of(folder)
    with failing_disk(registry.home.root, number), pytest.raises(error):
        registry.publish("shop", folder, DRAFT)
    whole(registry, "shop@1")
    assert weights_of(folder) == before, "training took hours; its result is the caller's still"
    assert registry.publish("shop", folder, DRAFT).id == "shop@2"
    whole(registry, "shop@1", "shop@2")


def test_a_database_that_fails_after_the_renaming_gives_the_folder_back(
    registry: Registry, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish("shop")
    folder = adapter_folder(registry.home.tmp / "new")
    before = weights_of(folder)

    def fail(*_: Any) -> None:
        raise StorageFull("no space is left for the database")

    with monkeypatch.context() as patched:
        patched.setattr(registry_module, "_insert", fail)
        with pytest.raises(StorageFull):
            registry.publish("shop", folder, DRAFT)
    whole(registry, "shop@1")
    assert weights_of(folder) == before
    registry.publish("shop", folder, DRAFT)
    whole(registry, "shop@1", "shop@2")


def test_a_version_that_cannot_be_removed_stays_whole(registry: Registry, publish: Publish) -> None:
    publish("shop")
    publish("shop")
    with read_only_database(registry.database), pytest.raises(StorageReadOnly):
        registry.remove("shop", 2)
    registry.recover()
    whole(registry, "shop@1", "shop@2")
    registry.remove("shop", 2)
    whole(registry, "shop@1")


def test_the_command_says_it_in_one_line(
    registry: Registry, tiny_base: TinyBase, folders: list[Path]
) -> None:
    home = registry.home
    command = ["import", str(folders[0]), "--name", "shop", "--base", str(tiny_base("llama"))]
    with failing_disk(home.root):
        result = CliRunner().invoke(adapters_app, [*command, "--home", str(home.root)])
    assert result.exit_code == 1
    assert result.output.startswith("error: no space is left to write ")
    assert result.output.count("\n") == 1
    whole(registry)
    assert [*home.tmp.iterdir()] == []
