"""A merged folder is the base plus the adapter, whole or not there at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from artifacts.adapter import read_adapter
from artifacts.base import Base, Checkpoint, open_base
from artifacts.errors import AdapterRejected, Conflict, Corrupt, InvalidInput, StorageFull
from export import merge as merge_module
from export.run import Asked, export_merged


def quiet(done: int, total: int) -> None:
    pass


def export(adapter: Path, output: Path, base: Path, **changes: Any) -> dict[str, Any]:
    return export_merged(Asked(str(adapter), output, str(base), **changes), quiet)


def expected(base: Base, adapter: Path) -> dict[str, torch.Tensor]:
    """W + s·B·A by PEFT's own arithmetic, in float32, rounded once."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32)
    merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    return {name: tensor for name, tensor in merged.state_dict().items() if "lora" not in name}


@pytest.mark.parametrize("which", ["tiny_base", "bfloat16_base"])
def test_the_weights_are_the_sum_rounded_once(
    which: str, adapter: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    base = open_base(request.getfixturevalue(which))
    facts = export(adapter, tmp_path / "merged", base.path)
    merged, wanted, before = (
        Checkpoint(open_base(tmp_path / "merged")),
        expected(base, adapter),
        Checkpoint(base),
    )
    assert set(merged) == set(before)
    changed = {name for name in merged if not torch.equal(merged[name], before[name])}
    assert changed == {f"{module}.weight" for module in read_adapter(adapter).pairs}
    for name in merged:
        assert merged[name].dtype == before[name].dtype
        torch.testing.assert_close(merged[name], wanted[name].to(merged[name].dtype))
    assert 0 <= facts["difference"] <= facts["tolerance"] < facts["effect"]


def test_what_serves_stays_with_it(adapter: Path, tmp_path: Path, tiny_base: Path) -> None:
    export(adapter, tmp_path / "merged", tiny_base)
    base, merged = open_base(tiny_base), open_base(tmp_path / "merged")
    assert merged.template_hash == base.template_hash
    assert merged.fingerprint != base.fingerprint
    assert merged.tokenizer("Hello 你好")["input_ids"] == base.tokenizer("Hello 你好")["input_ids"]
    record = json.loads((tmp_path / "merged" / "export.json").read_text())
    assert record["adapter_content_hash"] == read_adapter(adapter).content_hash
    assert record["base_fingerprint"] == base.fingerprint


def test_files_are_cut_at_the_size_that_is_asked(
    adapter: Path, tmp_path: Path, tiny_base: Path
) -> None:
    export(adapter, tmp_path / "one", tiny_base)
    export(adapter, tmp_path / "many", tiny_base, shard_gb=1e-4, is_verified=False)
    files = sorted((tmp_path / "many").glob("*.safetensors"))
    assert len(files) > 2
    assert all(file.stat().st_size < 1e5 + 4096 for file in files)
    assert (tmp_path / "many" / "model.safetensors.index.json").is_file()
    assert open_base(tmp_path / "many").fingerprint == open_base(tmp_path / "one").fingerprint


def test_a_merge_that_answers_differently_is_not_kept(
    adapter: Path, tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = merge_module._merged

    def without_scaling(weight: torch.Tensor, pair: Any) -> torch.Tensor:
        return real(weight, None) + (0 if pair is None else 2 * pair.b @ pair.a)

    monkeypatch.setattr(merge_module, "_merged", without_scaling)
    with pytest.raises(Corrupt, match="differ from the adapter's by"):
        export(adapter, tmp_path / "merged", tiny_base)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_on_the_way_leaves_nothing(
    adapter: Path, tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".merged.part").mkdir()  # of an export that was killed
    (tmp_path / ".merged.part" / "model.safetensors").write_bytes(b"half")
    full = SimpleNamespace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: full)
    with pytest.raises(StorageFull, match=r"takes .* GB"):
        export(adapter, tmp_path / "merged", tiny_base)
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_exists_is_left_alone(
    adapter: Path, tmp_path: Path, tiny_base: Path
) -> None:
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "mine.txt").write_text("mine")
    with pytest.raises(Conflict, match="exists already"):
        export(adapter, tmp_path / "merged", tiny_base)
    assert [path.name for path in (tmp_path / "merged").iterdir()] == ["mine.txt"]


def test_another_base_is_refused(adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterRejected):
        export_merged(Asked(str(adapter), tmp_path / "merged"), quiet)  # the embedded one
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    ("adapter_id", "changes", "message"),
    [("No Name", {}, "neither a folder"), ("{adapter}", {"shard_gb": 0}, "above 0")],
)
def test_what_makes_no_sense_is_named(
    adapter: Path, tmp_path: Path, adapter_id: str, changes: dict[str, Any], message: str
) -> None:
    asked = Asked(adapter_id.format(adapter=adapter), tmp_path / "merged", **changes)
    with pytest.raises(InvalidInput, match=message):
        export_merged(asked, quiet)
