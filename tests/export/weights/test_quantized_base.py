"""A base as QLoRA saw it, bit for bit; and what merging into the other one costs."""

from __future__ import annotations

import builtins
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from bitsandbytes import functional

from artifacts.base import Checkpoint
from artifacts.errors import InvalidInput
from artifacts.heldout import HeldOutRow
from export.forms.merged import MERGED
from export.merge_costs import MERGES, merge_costs
from export.quantized_base import dequantized, is_quantized, quantize_int8, quantize_nf4
from export.source import MergedTensors, Source, open_source
from tests.artifacts.drafts import DRAFT
from tests.export.weights.conftest import write_form

Kind = Literal["nf4", "int8"]
CASES = [("nf4", True), ("nf4", False), ("int8", True)]


def trained_on(
    base: Path, adapter: Path, kind: Kind, *, double: bool = True, dtype: str = "float32"
) -> Source:
    """As if training had recorded what it quantised; merged into that."""
    settings = {"quantization": kind, "double_quantization": double, "dtype": dtype}
    source = open_source(str(adapter), str(base))
    manifest = DRAFT.model_copy(update={"settings": settings})
    return replace(source, manifest=manifest, merge="dequantized")


def dequantized_model(base: Path, kind: Kind, *, double: bool, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = (
        BitsAndBytesConfig(load_in_8bit=True)
        if kind == "int8"
        else BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_use_double_quant=double,
        )
    )
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=dtype, quantization_config=config, device_map="cpu"
    )
    return model.dequantize(dtype)


@pytest.mark.parametrize(("kind", "double"), CASES)
@pytest.mark.parametrize(("which", "dtype"), [("tiny", "float32"), ("qwen2", "bfloat16")])
def test_it_is_what_transformers_dequantises(
    kind: Kind, double: bool, which: str, dtype: str, request: pytest.FixtureRequest
) -> None:
    base: Path = request.getfixturevalue(f"{which}_base")
    adapter: Path = request.getfixturevalue("adapter" if which == "tiny" else "qwen2_adapter")
    source = trained_on(base, adapter, kind, double=double, dtype=dtype)
    model = dequantized_model(base, kind, double=double, dtype=getattr(torch, dtype))
    wanted = model.state_dict()
    num_quantised = 0
    for name, weight in Checkpoint(source.base).items():
        found = dequantized(name, weight.float(), source)
        assert torch.equal(found, wanted[name].float()), name
        assert is_quantized(name, source) == (not torch.equal(found, weight.float()))
        num_quantised += is_quantized(name, source)
    assert num_quantised == 2 * 7


@pytest.mark.parametrize("double", [True, False])
def test_pieces_are_the_whole(double: bool) -> None:
    torch.manual_seed(0)
    weight = torch.randn(700, 832).to(torch.bfloat16)  # 2.2 pieces
    packed, state = quantize_nf4(weight, is_double=double)
    whole, wanted = functional.quantize_4bit(weight, compress_statistics=double, quant_type="nf4")
    assert torch.equal(packed, whole)
    found, expected = state.as_dict(packed=True), wanted.as_dict(packed=True)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    rows, scales = quantize_int8(weight)
    whole_rows, whole_scales, _ = functional.int8_vectorwise_quant(weight.to(torch.float16))
    assert torch.equal(rows, whole_rows)
    assert torch.equal(scales, whole_scales)


def test_only_what_was_trained_on_is_merged_into(
    tiny_base: Path, adapter: Path, tmp_path: Path
) -> None:
    source = trained_on(tiny_base, adapter, "nf4")
    write_form(MERGED, source, tmp_path / "dequantized")
    write_form(MERGED, replace(source, merge="original"), tmp_path / "original")
    assert (tmp_path / "dequantized" / "model.safetensors").stat().st_size == (
        tmp_path / "original" / "model.safetensors"
    ).stat().st_size
    dense, into_original = (MergedTensors(replace(source, merge=m)) for m in MERGES)
    for name, tensor in dense.items():
        assert torch.equal(tensor, into_original[name]) != is_quantized(name, source), name
    base = Checkpoint(source.base)
    for module, pair in source.weights.pairs.items():
        name = f"{module}.weight"
        update = pair.scaling * pair.b @ pair.a
        wanted = dequantized(name, base[name], source) + update
        torch.testing.assert_close(dense[name], wanted)


@pytest.mark.parametrize(("kind", "double"), CASES)
def test_the_cost_of_each_merge_is_what_the_quantised_base_would_have_said(
    kind: Kind, double: bool, tiny_base: Path, adapter: Path
) -> None:
    """Merged into what it was trained on, it says the same; into the original it does not."""
    rows = [HeldOutRow(tuple(range(i, i + 20)), 5) for i in range(3, 12)]
    source = trained_on(tiny_base, adapter, kind, double=double)
    costs = merge_costs(replace(source, merge="original"), rows)
    assert set(costs) == set(MERGES)
    assert costs["dequantized"] < 1e-7
    assert costs["original"] > 20 * costs["dequantized"]
    assert costs["original"] > {"nf4": 1e-4, "int8": 1e-7}[kind]
    other = trained_on(tiny_base, adapter, kind, double=not double)
    if kind == "nf4":  # the wrong scales would be seen
        assert merge_costs(other, rows)["original"] != costs["original"]


def test_without_bitsandbytes_the_other_way_is_named(
    tiny_base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def no_bitsandbytes(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("bitsandbytes"):
            raise ImportError(name)
        return real(name, *rest, **more)

    tensors = MergedTensors(trained_on(tiny_base, adapter, "nf4"))
    monkeypatch.setattr(builtins, "__import__", no_bitsandbytes)
    with pytest.raises(InvalidInput, match="--merge original"):
        tensors["model.layers.0.mlp.up_proj.weight"]
