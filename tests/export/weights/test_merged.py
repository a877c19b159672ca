"""A merged folder is the base plus the adapter, rounded once, in files of the size asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from artifacts.adapter import read_adapter
from artifacts.base import Base, Checkpoint, open_base
from export.forms.merged import MERGED
from export.source import merged_model, open_source
from tests.export.weights.conftest import write_form

ROW = torch.arange(3, 60)[None]


def expected(base: Base, adapter: Path) -> dict[str, torch.Tensor]:
    """W + s·B·A by PEFT's own arithmetic, in float32."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32)
    merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    return {name: tensor for name, tensor in merged.state_dict().items() if "lora" not in name}


@pytest.mark.parametrize(
    ("which", "whose"),
    [("tiny_base", "adapter"), ("bfloat16_base", "adapter"), ("qwen2_base", "qwen2_adapter")],
)
def test_the_weights_are_the_sum_rounded_once(
    which: str, whose: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    base = open_base(request.getfixturevalue(which))
    adapter: Path = request.getfixturevalue(whose)
    write_form(MERGED, open_source(str(adapter), str(base.path)), tmp_path / "merged")
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


def test_the_model_in_memory_answers_as_peft_does(qwen2_base: Path, qwen2_adapter: Path) -> None:
    """What the graphs are made of: float32, biases and a head of its own in place."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(qwen2_base, dtype=torch.float32).eval()
    plain = model(ROW).logits
    wanted = PeftModel.from_pretrained(model, str(qwen2_adapter))(ROW).logits
    found = merged_model(open_source(str(qwen2_adapter), str(qwen2_base)))(ROW).logits
    assert (wanted - plain).abs().max() > 0.1
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=0)


def test_files_are_cut_at_the_size_that_is_asked(
    adapter: Path, tmp_path: Path, tiny_base: Path
) -> None:
    source = open_source(str(adapter), str(tiny_base))
    write_form(MERGED, source, tmp_path / "one")
    settings = write_form(MERGED, source, tmp_path / "many", shard_bytes=100_000)
    files = sorted((tmp_path / "many").glob("*.safetensors"))
    assert len(files) == settings["num_files"] > 2
    assert all(file.stat().st_size < 1e5 + 4096 for file in files)
    assert (tmp_path / "many" / "model.safetensors.index.json").is_file()
    assert not (tmp_path / "one" / "model.safetensors.index.json").exists()
    assert open_base(tmp_path / "many").fingerprint == open_base(tmp_path / "one").fingerprint
    assert open_base(tmp_path / "one").fingerprint != source.base.fingerprint


def test_the_space_that_is_asked_for_is_the_space_that_is_taken(
    adapter: Path, tmp_path: Path, tiny_base: Path
) -> None:
    source = open_source(str(adapter), str(tiny_base))
    write_form(MERGED, source, tmp_path / "merged")
    taken = (tmp_path / "merged" / "model.safetensors").stat().st_size
    assert abs(MERGED.num_bytes(source, None) - taken) < 8192  # type: ignore[arg-type]
