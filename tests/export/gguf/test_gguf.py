"""GGUF files beside transformers: what its own reader finds in them is what was merged."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoConfig

from artifacts.base import load_transformers_model, open_base
from artifacts.errors import InvalidInput, StorageFull
from artifacts.exported.transformers_model import load_transformers
from export.block_format import Blocks
from export.calibration.calibrate import calibrate
from export.forms.form import Form, Options
from export.forms.gguf import ADAPTER_FILE, F16, MODEL_FILE, Q4_0, Q8_0
from export.gguf.__main__ import write_base
from export.gguf.metadata import check_model
from export.gguf.tensors import permuted
from export.source import MergedTensors, Source, merged_model
from tests.export.gguf.conftest import FAMILIES, LLAMA3, SIZES, make_source, write
from tests.export.graph.agreement import largest_difference

SourceOf = Callable[[str], Source]


@pytest.mark.parametrize("family", FAMILIES)
def test_f16_answers_as_the_merged_model(source_of: SourceOf, tmp_path: Path, family: str) -> None:
    folder, _ = write(F16, source_of(family), tmp_path)
    reference = merged_model(source_of(family))
    # F16 moves these logits by 1.6e-3 at most; unpermuted rows by 9e-3 (Llama), 0.8 (Mistral).
    assert largest_difference(load_transformers(folder), reference) < 4e-3


@pytest.mark.parametrize(("form", "kind"), [(Q8_0, "Q8_0"), (Q4_0, "Q4_0")])
def test_the_blocks_are_the_merged_weights_rounded(
    source_of: SourceOf, tmp_path: Path, form: Form, kind: str
) -> None:
    source = source_of("llama")
    folder, settings = write(form, source, tmp_path, calibrate=False)
    assert settings.get("wider", {}) == ({"output.weight": "Q8_0"} if kind == "Q4_0" else {})
    reference = merged_model(source)
    with torch.no_grad():
        for name, weight in reference.named_parameters():
            if weight.dim() == 2:
                each = gguf.GGMLQuantizationType["Q8_0" if name == "lm_head.weight" else kind]
                blocks = gguf.quants.quantize(weight.numpy(), each)
                weight.copy_(torch.from_numpy(gguf.quants.dequantize(blocks, each)))
    assert largest_difference(load_transformers(folder), reference) < 1e-5


@pytest.mark.parametrize("family", ["llama", "qwen2"])  # rows interleaved or not, head apart or not
def test_calibrated_blocks_are_in_the_file(
    source_of: SourceOf, tmp_path: Path, family: str
) -> None:
    source, blocks = source_of(family), Blocks(4, 32)
    folder, settings = write(Q4_0, source, tmp_path)
    assert settings["is_calibrated"]
    head = "lm_head.weight" if family == "llama" else "model.embed_tokens.weight"
    given = calibrate(source, lambda name: None if name == head else blocks, lambda *_: None)
    reference = merged_model(source)
    with torch.no_grad():
        for name, weight in reference.named_parameters():
            if name in given:
                packed, scales = given[name]
                half = scales.astype(np.float16).astype(np.float32)
                weight.copy_(torch.from_numpy(blocks.dequantize((packed, half))))
            elif name == head:
                eight = gguf.GGMLQuantizationType.Q8_0
                rounded = gguf.quants.quantize(weight.numpy(), eight)
                weight.copy_(torch.from_numpy(gguf.quants.dequantize(rounded, eight)))
    assert largest_difference(load_transformers(folder), reference) < 1e-5


def test_rows_that_fill_no_blocks_stay_f16_and_are_named(tmp_path: Path) -> None:
    source = make_source(Qwen2(intermediate_size=40), tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    folder, settings = write(Q4_0, source, out)
    assert settings["wider"] == {
        "token_embd.weight": "Q8_0",
        "blk.0.ffn_down.weight": "F16",
        "blk.1.ffn_down.weight": "F16",
    }
    assert largest_difference(load_transformers(folder), merged_model(source)) < 0.3


def Qwen2(**changes: Any) -> Any:
    return type(FAMILIES["qwen2"])(**SIZES | changes, tie_word_embeddings=True)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_the_file_itself_says_the_models_sizes(
    source_of: SourceOf, tmp_path: Path, family: str
) -> None:
    """llama.cpp reads no config.json: transformers finds the same sizes without one."""
    source = source_of(family)
    folder, _ = write(F16, source, tmp_path)
    (folder / "config.json").unlink()
    found, wanted = AutoConfig.from_pretrained(folder, gguf_file=MODEL_FILE), source.base.config
    assert found.model_type == wanted.model_type
    assert found.rope_parameters["rope_theta"] == wanted.rope_parameters["rope_theta"]
    for key in (*SIZES, "tie_word_embeddings"):
        assert getattr(found, key) == getattr(wanted, key), key
    assert found.rms_norm_eps == pytest.approx(wanted.rms_norm_eps)


def test_llama3s_scaling_is_written_as_divisors(source_of: SourceOf, tmp_path: Path) -> None:
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    source = source_of("llama")
    folder, _ = write(F16, source, tmp_path)
    reader = gguf.GGUFReader(folder / MODEL_FILE)
    [divisors] = [t.data for t in reader.tensors if t.name == "rope_freqs.weight"]
    scaled = LlamaRotaryEmbedding(source.base.config).inv_freq.numpy()
    plain = LLAMA3["rope_theta"] ** (-np.arange(0, 16, 2) / 16)  # type: ignore[operator]
    np.testing.assert_allclose(plain / divisors, scaled, rtol=1e-6)
    assert divisors.max() == pytest.approx(8)  # some are slowed down, some are not
    assert divisors.min() == pytest.approx(1)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_base_and_adapter_in_llama_cpps_arithmetic_are_the_merged_weights(
    source_of: SourceOf, tmp_path: Path, family: str
) -> None:
    source = source_of(family)
    folder, _ = write(F16, source, tmp_path)
    reader = gguf.GGUFReader(folder / ADAPTER_FILE)
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    assert reader.fields["general.type"].contents() == "adapter"
    assert reader.fields["adapter.type"].contents() == "lora"
    assert reader.fields["general.architecture"].contents() == family
    alpha = reader.fields["adapter.lora.alpha"].contents()
    merged, config = MergedTensors(source), source.base.config
    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "mlp.down_proj": "ffn_down",
    }
    assert len(tensors) == 2 * len(source.weights.pairs)
    for module, name in names.items():
        weight = f"model.layers.1.{module}.weight"
        a, b = (tensors[f"blk.1.{name}.weight.lora_{side}"] for side in "ab")
        base = permuted(weight, merged.base_tensor(weight), config).numpy()
        found = base + alpha / b.shape[1] * (b @ a)
        wanted = permuted(weight, merged[weight], config).numpy()
        np.testing.assert_allclose(found, wanted, atol=1e-6)
        assert np.abs(wanted - base).max() > 1e-2


REFUSED = {
    "llama3 on qwen2": Qwen2(rope_parameters=LLAMA3),
    "attention_factor": Qwen2(
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 1e4,
            "factor": 4.0,
            "attention_factor": 1.3,
        }
    ),
    "attention_bias": type(FAMILIES["qwen3"])(**SIZES, attention_bias=True),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_llama_cpp_would_compute_otherwise_is_refused(what: str) -> None:
    with pytest.raises(InvalidInput, match=what):
        check_model(REFUSED[what])


def test_a_tokenizer_of_another_kind_is_refused(source_of: SourceOf, tmp_path: Path) -> None:
    from dataclasses import replace

    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    source = source_of("qwen2")
    shutil.copytree(source.base.path, tmp_path / "base")
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path / "base")
    other = replace(source, base=open_base(tmp_path / "base"))
    with pytest.raises(InvalidInput, match="no byte-level BPE"):
        F16.check(other, Options())


def test_weights_beyond_f16_are_refused(
    source_of: SourceOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = MergedTensors.__getitem__
    monkeypatch.setattr(MergedTensors, "__getitem__", lambda self, name: whole(self, name) * 1e7)
    with pytest.raises(InvalidInput, match="more than F16 can hold"):
        write(F16, source_of("mistral"), tmp_path)


def test_the_forecast_is_near_what_is_written(source_of: SourceOf, tmp_path: Path) -> None:
    source = source_of("llama")
    folder, _ = write(Q8_0, source, tmp_path)
    written = sum((folder / name).stat().st_size for name in (MODEL_FILE, ADAPTER_FILE))
    assert Q8_0.num_bytes(source, Options()) == pytest.approx(written, rel=0.1)


def test_a_base_alone_is_what_the_adapters_file_goes_onto(
    source_of: SourceOf, tmp_path: Path
) -> None:
    source = source_of("qwen2")
    write(F16, source, tmp_path)
    write_base(source.base, tmp_path / MODEL_FILE, lambda *_: None)
    plain = load_transformers_model(source.base, torch.float32)
    assert largest_difference(load_transformers(tmp_path), plain) < 4e-3
    assert largest_difference(load_transformers(tmp_path), merged_model(source)) > 0.1
    names = [tensor.name for tensor in gguf.GGUFReader(tmp_path / ADAPTER_FILE).tensors]
    in_base = {tensor.name for tensor in gguf.GGUFReader(tmp_path / MODEL_FILE).tensors}
    assert {name.rpartition(".lora_")[0] for name in names} <= in_base
    assert not list(tmp_path.glob(".*"))


def test_a_base_that_cannot_be_written_whole_leaves_the_file_that_was_there(
    source_of: SourceOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: object, name: str) -> torch.Tensor:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "base.gguf").write_bytes(b"before")
    monkeypatch.setattr(MergedTensors, "__getitem__", full)
    with pytest.raises(StorageFull, match=r"base\.gguf"):
        write_base(source_of("qwen2").base, tmp_path / "base.gguf", lambda *_: None)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"before"]


def test_an_output_that_can_be_no_file_is_said(source_of: SourceOf, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path, tmp_path / "file" / "base.gguf"):
        with pytest.raises(InvalidInput, match=r"cannot be written .* name another file"):
            write_base(source_of("qwen2").base, path, lambda *_: None)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
