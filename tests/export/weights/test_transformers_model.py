"""Exports that transformers loads compute as it does, padded and with a cache, or do not open."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from artifacts.adapter import LoraPair, LoraWeights
from artifacts.base import open_base
from artifacts.errors import Corrupt, InvalidInput
from artifacts.exported.graph import GraphBatch
from artifacts.exported.transformers_model import TransformersModel, load_transformers
from export.forms.bitsandbytes import INT8, NF4
from export.forms.merged import MERGED
from export.source import Source, open_source
from tests.export.weights.conftest import write_form

LENGTHS = (5, 9, 7)
LONGEST, CAPACITY, STEPS = 9, 16, 3
NO_WEIGHTS = LoraWeights({}, 1, 1, (), "c" * 64, 0, {})


@pytest.fixture(scope="module")
def source(adapter: Path, tiny_base: Path) -> Source:
    return open_source(str(adapter), str(tiny_base))


def answers(model: TransformersModel, rows: list[list[int]]) -> list[torch.Tensor]:
    """Logits of every token of ``rows``: left-padded, the last ``STEPS`` one at a time."""
    cache = [tensor.fill_(7.0) for tensor in model.shape.new_cache(len(rows), CAPACITY)]
    heads = [row[:-STEPS] for row in rows]
    pads = [LONGEST - len(head) for head in heads]
    mask = torch.zeros(len(rows), CAPACITY, dtype=torch.int64)
    for i, pad in enumerate(pads):
        mask[i, pad:LONGEST] = 1
    ids = torch.tensor([[0] * pad + head for pad, head in zip(pads, heads, strict=True)])
    positions = torch.tensor([[0] * pad + list(range(LONGEST - pad)) for pad in pads])
    start = torch.zeros(len(rows), dtype=torch.int64)
    every = torch.arange(LONGEST).expand(len(rows), -1).contiguous()
    first = model.run(GraphBatch(ids, positions, start, mask, every), cache)
    found = [[logits[pad:]] for logits, pad in zip(first, pads, strict=True)]
    for step in range(STEPS):
        mask[:, LONGEST + step] = 1
        ids = torch.tensor([[row[len(head) + step]] for row, head in zip(rows, heads, strict=True)])
        positions = torch.tensor([[len(head) + step] for head in heads])
        batch = GraphBatch(ids, positions, start + LONGEST + step, mask, torch.zeros_like(ids))
        for logits, kept in zip(model.run(batch, cache), found, strict=True):
            kept.append(logits)
    return [torch.cat(parts) for parts in found]


@pytest.mark.parametrize("form", [MERGED, NF4, INT8], ids=["merged", "nf4", "int8"])
@torch.no_grad()
def test_padded_rows_and_cached_steps_are_what_transformers_computes(
    form: Any, source: Source, tmp_path: Path
) -> None:
    write_form(form, source, tmp_path / "export")
    model = load_transformers(tmp_path / "export", num_threads=1)
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "export", device_map="cpu").eval()
    torch.manual_seed(2)
    rows = [torch.randint(3, 250, (length + STEPS,)).tolist() for length in LENGTHS]
    assert model.shape.cache_dtype == reference.dtype
    is_float32 = reference.dtype == torch.float32
    assert is_float32 == (form is MERGED)
    for row, found in zip(rows, answers(model, rows), strict=True):
        wanted = reference(torch.tensor([row])).logits[0].float()
        assert found.dtype == torch.float32
        # 16-bit sums in another order; int8 also rounds each row of tokens by its largest.
        torch.testing.assert_close(found, wanted, atol=1e-5 if is_float32 else 0.05, rtol=0)


def test_nf4_layers_that_the_cpu_kernel_cannot_pack_are_computed_all_the_same(
    tiny_base: Path, tmp_path: Path
) -> None:
    """16 rows for keys, 48 columns: bitsandbytes' kernel packs 32 and 64 at a time."""
    odd = shutil.copytree(tiny_base, tmp_path / "odd")
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=262,
            hidden_size=48,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=3,
            num_key_value_heads=1,
        )
    ).save_pretrained(odd)
    pair = LoraPair(torch.ones(1, 48), torch.ones(16, 1), 0.1)
    weights = replace(NO_WEIGHTS, pairs={"model.layers.0.self_attn.k_proj": pair})
    source = Source(open_base(odd), str(odd), "odd", "odd", odd, weights, None, "original")
    write_form(NF4, source, tmp_path / "nf4")
    [logits] = answers(load_transformers(tmp_path / "nf4"), [list(range(3, 3 + LONGEST + STEPS))])
    assert logits.isfinite().all()


def test_a_weight_that_is_gone_is_not_made_up(source: Source, tmp_path: Path) -> None:
    write_form(MERGED, source, tmp_path / "merged")
    file = tmp_path / "merged" / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(Corrupt, match=r"no usable weight model\.layers\.1\.mlp\.up_proj"):
        load_transformers(tmp_path / "merged")


def test_a_file_that_was_cut_short_is_named(source: Source, tmp_path: Path) -> None:
    write_form(MERGED, source, tmp_path / "merged")
    file = tmp_path / "merged" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(Corrupt, match="cannot be loaded"):
        load_transformers(tmp_path / "merged")


def test_without_bitsandbytes_it_is_said(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_form(NF4, source, tmp_path / "nf4")
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else real(name)
    )
    with pytest.raises(InvalidInput, match="needs bitsandbytes; install it with"):
        load_transformers(tmp_path / "nf4")


def test_a_merged_export_takes_no_adapter(source: Source, tmp_path: Path) -> None:
    write_form(MERGED, source, tmp_path / "merged")
    model = load_transformers(tmp_path / "merged")
    assert not model.takes_adapters
    with pytest.raises(InvalidInput, match="takes no other"):
        model.pack(source.weights)
