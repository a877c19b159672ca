"""nf4 and int8 folders are what bitsandbytes makes of the merged model, and load by themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes import functional
from safetensors.torch import load_file

from artifacts.architecture import linear_shapes
from export.calibration.calibrate import calibrate
from export.forms.bitsandbytes import INT8, NF4
from export.forms.form import Options
from export.forms.merged import MERGED
from export.forms.nf4_format import Nf4Blocks, nf4_tensors
from export.source import MergedTensors, open_source
from tests.export.weights.conftest import write_form

ROW = torch.arange(3, 60)[None]
QUANTIZATION: dict[str, dict[str, Any]] = {
    "nf4": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": torch.bfloat16,
    },
    "int8": {"load_in_8bit": True},
}
FORMS = {"nf4": NF4, "int8": INT8}


def load(folder: Path, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, device_map="cpu", **options).eval()


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for file in folder.glob("*.safetensors")
        for name, tensor in load_file(file).items()
    }


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("which", ["tiny", "qwen2"])
def test_bitsandbytes_itself_writes_the_same_bytes(
    kind: str, which: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """One weight at a time and all at once give the same; a float32 base is rounded to bfloat16."""
    from transformers import BitsAndBytesConfig

    base = request.getfixturevalue(f"{which}_base")
    adapter = request.getfixturevalue("adapter" if which == "tiny" else "qwen2_adapter")
    source = open_source(str(adapter), str(base))
    form = FORMS[kind]
    settings = write_form(form, source, tmp_path / kind, shard_bytes=30_000, calibrate=False)
    assert settings["embedding"] == settings["lm_head"] == "bfloat16"
    write_form(MERGED, source, tmp_path / "merged")
    whole = load(
        tmp_path / "merged",
        dtype=torch.bfloat16,
        quantization_config=BitsAndBytesConfig(**QUANTIZATION[kind]),
    )
    whole.save_pretrained(tmp_path / "whole")
    found, wanted = tensors_of(tmp_path / kind), tensors_of(tmp_path / "whole")
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert torch.equal(found[name], wanted[name]), name
    assert len(list((tmp_path / kind).glob("*.safetensors"))) == settings["num_files"] > 1
    taken = sum(file.stat().st_size for file in (tmp_path / kind).glob("*.safetensors"))
    assert taken < form.num_bytes(source, Options()) + 50_000


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_plain_from_pretrained_loads_it(
    kind: str, qwen2_base: Path, qwen2_adapter: Path, tmp_path: Path
) -> None:
    source = open_source(str(qwen2_adapter), str(qwen2_base))
    write_form(FORMS[kind], source, tmp_path / kind)
    write_form(MERGED, source, tmp_path / "merged")
    model = load(tmp_path / kind)
    kinds = {name: type(module).__name__ for name, module in model.named_modules()}
    quantised = {name for name, kind in kinds.items() if kind in ("Linear4bit", "Linear8bitLt")}
    assert len(quantised) == 2 * 7
    assert "lm_head" not in quantised
    assert model.dtype == torch.bfloat16
    logits, merged, plain = (
        each(ROW).logits.float() for each in (model, load(tmp_path / "merged"), load(qwen2_base))
    )
    off = (logits - merged).abs().mean()
    assert off < 0.5 * (plain - merged).abs().mean()
    assert off > 0


def test_calibrated_nf4_is_read_as_it_was_meant(
    tiny_base: Path, adapter: Path, tmp_path: Path
) -> None:
    """Rows of 96 inputs do not fill blocks of 64: those weights are bitsandbytes' own."""
    source, blocks = open_source(str(adapter), str(tiny_base)), Nf4Blocks()
    assert write_form(NF4, source, tmp_path / "nf4")["is_calibrated"]
    shapes = linear_shapes(source.base.config)
    ours = {f"{name}.weight" for name, (_, width) in shapes.items() if width % 64 == 0}
    given = calibrate(source, lambda name: blocks if name in ours else None, lambda *_: None)
    assert given.keys() == ours
    assert len(ours) == (6 if source.base.config.intermediate_size % 64 else 7) * 2
    model, merged = load(tmp_path / "nf4"), MergedTensors(source)
    for module in shapes:
        name = f"{module}.weight"
        weight = model.get_parameter(name)
        read = functional.dequantize_4bit(weight.data, weight.quant_state).float()
        if name in ours:
            wanted = torch.from_numpy(blocks.dequantize(given[name])).to(torch.bfloat16).float()
            assert (read - wanted).abs().max() <= 0.01 * wanted.abs().max(), name
        assert (read - merged[name]).norm() < 0.3 * merged[name].norm()


def test_blocks_of_nf4_mean_what_bitsandbytes_makes_of_them() -> None:
    weight = torch.randn(6, 128)
    blocks = Nf4Blocks()
    packed, state = functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    found = torch.from_numpy(blocks.dequantize(blocks.quantize(weight.numpy())))
    assert torch.allclose(found, functional.dequantize_4bit(packed, state), atol=1e-6)
    levels, scales = blocks.search(weight.numpy())
    searched = torch.from_numpy(blocks.dequantize((blocks.pack(levels), scales)))
    assert (searched - weight).norm() < (found - weight).norm()
    bytes_, parts = nf4_tensors((blocks.pack(levels), scales), weight.shape, torch.float32)
    state = functional.QuantState.from_dict(parts, device=torch.device("cpu"))
    assert torch.allclose(functional.dequantize_4bit(bytes_, state), searched, atol=1e-6)
