"""The adapter alone: PEFT loads it, and nothing of this installation goes with it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from artifacts.adapter import read_adapter
from artifacts.database import Database
from artifacts.home import Home
from artifacts.manifest import CARD_MARK
from artifacts.registry import Registry
from export.forms.adapter import ADAPTER
from export.forms.form import Options, Workshop
from export.source import Source, open_source
from tests.artifacts.drafts import DRAFT


def write(source: Source, folder: Path) -> set[str]:
    folder.mkdir()
    ADAPTER.write(Workshop(source, lambda *_: None), Options(), folder)
    assert ADAPTER.num_bytes(source, Options()) == sum(p.stat().st_size for p in folder.iterdir())
    return {path.name for path in folder.iterdir()}


def test_peft_loads_what_was_exported(adapter: Path, tiny_base: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    written = write(open_source(str(adapter), str(tiny_base)), tmp_path / "out")
    assert written == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    assert read_adapter(tmp_path / "out").content_hash == read_adapter(adapter).content_hash
    row = torch.arange(3, 40)[None]
    found, wanted = (
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_base), folder)(row)
        for folder in (tmp_path / "out", adapter)
    )
    assert torch.equal(found.logits, wanted.logits)


def test_a_version_brings_its_own_card_and_the_licence_of_its_base(
    adapter: Path, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = shutil.copytree(tiny_base, tmp_path / "base")
    for name in ("LICENSE", "LICENCE-MODEL.txt", "NOTICE", "USE_POLICY.md", "licenses.json"):
        (base / name).write_text("terms")
    home = Home.open(tmp_path / "home")
    monkeypatch.setenv("LORALOOP_HOME", str(home.root))
    draft = DRAFT.model_copy(update={"content_hash": read_adapter(adapter).content_hash})
    registry = Registry(home, Database(home.database_url))
    registry.publish("shop", shutil.copytree(adapter, tmp_path / "copy"), draft)
    (home.adapters / "shop" / "1" / "heldout.jsonl").write_text("customers' words")
    source = open_source("shop", str(base))
    assert source.adapter_source == "shop@1", "what the name means today"
    written = write(source, tmp_path / "out")
    licences = {"LICENSE", "LICENCE-MODEL.txt", "NOTICE", "USE_POLICY.md"}
    assert written == {
        "adapter_config.json", "adapter_model.safetensors", "README.md", *licences
    }  # fmt: skip
    card = (tmp_path / "out" / "README.md").read_text()
    assert CARD_MARK in card
    assert "# shop@1" in card
