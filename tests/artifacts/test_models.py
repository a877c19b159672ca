"""Whole models on disk: numbered, wholly there or not at all, opened like any base."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from artifacts.base import Checkpoint, open_base
from artifacts.errors import StorageFull
from artifacts.home import Home
from artifacts.models import ModelDraft, publish_model, write_model
from tests.conftest import TinyBase


def draft(fingerprint: str = "f") -> ModelDraft:
    return ModelDraft(fingerprint=fingerprint, base_id="b", base_fingerprint="bf",
                      template_hash=None, num_parameters=1)  # fmt: skip


def folder_in(home: Home, name: str) -> Path:
    folder = home.tmp / name
    folder.mkdir()
    (folder / "weights").write_text("w")
    return folder


def test_a_copy_of_a_base_is_that_base(home: Home, tiny_base: TinyBase) -> None:
    base = open_base(tiny_base("qwen2"))
    folder = home.tmp / "model"
    folder.mkdir()
    write_model(folder, base, Checkpoint(base))
    model = publish_model(home, "shop", folder, draft())
    assert open_base(model.path).fingerprint == base.fingerprint
    assert not folder.exists()


def test_numbers_count_up_and_belong_to_the_name(home: Home) -> None:
    paths = [publish_model(home, name, folder_in(home, str(i)), draft()).path.name
             for i, name in enumerate(["shop", "shop", "shop-b", "shop"])]  # fmt: skip
    assert paths == ["shop@1", "shop@2", "shop-b@1", "shop@3"]
    manifest = json.loads((home.models / "shop@3" / "manifest.json").read_text())
    assert (manifest["name"], manifest["version"]) == ("shop", 3)
    assert list(manifest["files"]) == ["weights"]


def test_a_number_that_another_process_took_is_left_alone(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = publish_model(home, "shop", folder_in(home, "a"), draft("one"))
    seen = iter([0, 1])
    monkeypatch.setattr("artifacts.models._highest", lambda *_: next(seen))
    second = publish_model(home, "shop", folder_in(home, "b"), draft("two"))
    assert second.path.name == "shop@2"
    assert json.loads((first.path / "manifest.json").read_text())["fingerprint"] == "one"


def test_a_full_disk_publishes_nothing(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    folder = folder_in(home, "a")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageFull):
        publish_model(home, "shop", folder, draft())
    assert list(home.models.iterdir()) == []
