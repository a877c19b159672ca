"""Rows for comparisons: whole or not there, and gone with the last version of their content."""

from __future__ import annotations

import itertools
import logging
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from artifacts.database import Database
from artifacts.errors import Corrupt
from artifacts.heldout import HeldOutRow, heldout_path, read_heldout, write_heldout
from artifacts.home import Home
from artifacts.registry import Registry
from tests.artifacts.crash import run_until_effect
from tests.artifacts.drafts import DRAFT, adapter_folder

MEMORY = Path("/dev/shm")
HASH = DRAFT.content_hash
OTHER = "d" * 64
ROWS = [HeldOutRow((1, 5, 7, 2), 2), HeldOutRow((1, 2), 1)]


@pytest.fixture
def home() -> Iterator[Home]:
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        yield Home.open(folder)


@pytest.fixture
def registry(home: Home) -> Registry:
    return Registry(home, Database(home.database_url))


def publish(registry: Registry, name: str, content_hash: str = HASH) -> None:
    folder = adapter_folder(Path(tempfile.mkdtemp(dir=registry.home.tmp)) / "new")
    registry.publish(name, folder, DRAFT.model_copy(update={"content_hash": content_hash}))


def kept(home: Home) -> set[str]:
    return {path.name for path in home.heldout.iterdir()}


def test_rows_come_back_the_first_sixty_four_of_them(home: Home) -> None:
    assert read_heldout(home, HASH) == []
    write_heldout(home, HASH, [])
    assert not home.heldout.exists()
    write_heldout(home, HASH, ROWS)
    assert read_heldout(home, HASH) == ROWS
    write_heldout(home, HASH, [HeldOutRow((i, 1), 1) for i in range(70)])
    assert [row.token_ids[0] for row in read_heldout(home, HASH)] == list(range(64))
    assert kept(home) == {f"{HASH}.jsonl"}
    assert list(home.tmp.iterdir()) == []


def test_a_file_that_is_none_of_ours_is_named(home: Home) -> None:
    write_heldout(home, HASH, ROWS)
    heldout_path(home, HASH).write_text('{"token_ids": [1]}\n')
    with pytest.raises(Corrupt, match="delete it to go without"):
        read_heldout(home, HASH)


def test_they_go_with_the_last_version_of_their_content(home: Home, registry: Registry) -> None:
    publish(registry, "a")
    publish(registry, "b")
    publish(registry, "b", OTHER)
    for content_hash in (HASH, OTHER):
        write_heldout(home, content_hash, ROWS)
    registry.remove("a", 1, force=True)
    assert read_heldout(home, HASH) == ROWS  # b@1 has it, too
    registry.remove("b", 2)
    assert kept(home) == {f"{HASH}.jsonl"}
    registry.remove("b", 1, force=True)
    assert kept(home) == set()


def test_what_could_not_be_deleted_goes_at_the_next_start(
    home: Home,
    registry: Registry,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    publish(registry, "a")
    publish(registry, "b", OTHER)
    for content_hash in (HASH, OTHER):
        write_heldout(home, content_hash, ROWS)
    (home.heldout / "mine.jsonl").write_text("not ours")
    real = Path.unlink

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if path.suffix == ".jsonl":
            raise PermissionError(13, "no", str(path))
        real(path, missing_ok)

    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING):
        patched.setattr(Path, "unlink", unlink)
        registry.remove("a", 1, force=True)
    assert "could not be deleted yet" in caplog.text
    assert [version.id for version in registry.list()] == ["b@1"]
    registry.recover()
    assert kept(home) == {f"{OTHER}.jsonl", "mine.jsonl"}


def test_a_removal_killed_anywhere_leaves_no_words_of_a_version_that_is_gone(home: Home) -> None:
    outcomes = set()
    for count in itertools.count(1):
        registry = Registry(home, Database(home.database_url))
        if not registry.list():
            publish(registry, "a")
            write_heldout(home, HASH, ROWS)
        newest = registry.list()[-1].version
        registry.database.close()
        remove = partial(
            Registry(home, Database(home.database_url)).remove, "a", newest, force=True
        )
        is_finished = run_until_effect(remove, home.root, count)
        registry = Registry(home, Database(home.database_url))
        registry.recover()
        assert bool(registry.list()) == heldout_path(home, HASH).exists()
        outcomes.add(bool(registry.list()))
        registry.database.close()
        if is_finished:
            break
    assert outcomes == {True, False}
    assert count > 10  # it was really stopped inside
