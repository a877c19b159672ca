"""Adapters swapped on one ONNX session, each beside PEFT."""

from __future__ import annotations

import resource
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from artifacts.architecture import linear_shapes
from artifacts.base import open_base
from artifacts.errors import AdapterRejected, Corrupt, InvalidInput, NotFound, StorageError
from artifacts.exported.graph import INPUT_NAMES, AdapterInputs, GraphBatch, GraphShape
from artifacts.exported.onnx_model import OnnxModel, load_onnx
from artifacts.exported.record import RECORD_FILE, ExportRecord, FileEntry
from artifacts.safe_write import write_json
from export.forms.form import Workshop
from export.forms.onnx_adapters import write_onnx_adapter
from export.proof.candidate import packed_adapter
from export.source import open_source
from tests.export.adapters.conftest import MakeAdapter, Opened, open_exported
from tests.export.graph.agreement import largest_difference

TOLERANCE = 1e-5
A_LAYER = "model.layers.1.mlp.down_proj"
A_SIDE = f"{A_LAYER}.lora_A.weight"


@dataclass(frozen=True)
class Adapted:
    """The model with one adapter in every call."""

    model: OnnxModel
    adapter: AdapterInputs | None

    @property
    def shape(self) -> GraphShape:
        return self.model.shape

    def run(self, batch: GraphBatch, cache: Sequence[Tensor]) -> Tensor:
        return self.model.run(batch, cache, self.adapter)


def difference(opened: Opened, adapter: AdapterInputs | None, reference: Any) -> float:
    adapted: Any = Adapted(opened.model, adapter)
    return largest_difference(adapted, reference)


def test_base_and_adapters_take_turns_on_one_session(
    opened: Opened, adapter: Path, patterned: Path
) -> None:
    """Other ranks, modules and scalings; nothing of the one before is left."""
    packed = {"base": None, "wide": opened.pack(adapter), "patterned": opened.pack(patterned)}
    references = {
        "base": opened.reference(None),
        "wide": opened.reference(adapter),
        "patterned": opened.reference(patterned),
    }
    turns = ["base", "wide", "patterned", "base", "patterned", "wide", "base"]
    assert [difference(opened, packed[name], references[name]) for name in turns] == pytest.approx(
        [0] * len(turns), abs=TOLERANCE
    )
    for name, other in [("wide", "base"), ("patterned", "base"), ("wide", "patterned")]:
        assert difference(opened, packed[name], references[other]) > 100 * TOLERANCE


@pytest.mark.slow  # test_all_forms proves a base with biases too
def test_a_base_with_biases(make_adapter: MakeAdapter, tmp_path: Path, tiny_base: Path) -> None:
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=256,
        eos_token_id=257,
        tie_word_embeddings=False,
    )
    base = Qwen2ForCausalLM(config)
    for name, parameter in base.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.5)
    base.save_pretrained(tmp_path / "qwen2")
    tokenizer.save_pretrained(tmp_path / "qwen2")
    folder = make_adapter(tmp_path / "qwen2", "biased", r=2, target_modules="all-linear")
    source = open_source(str(folder), str(tmp_path / "qwen2"))
    exported = tmp_path / "exported"
    exported.mkdir()
    opened = open_exported(Workshop(source, lambda *_: None), exported)
    plain, adapted = opened.reference(None), opened.reference(folder)
    assert difference(opened, None, plain) <= TOLERANCE
    assert difference(opened, opened.pack(folder), adapted) <= TOLERANCE
    assert difference(opened, None, adapted) > 100 * TOLERANCE


def test_every_linear_layer_has_two_inputs_that_may_be_left_out(opened: Opened) -> None:
    session = opened.model._session
    shapes = linear_shapes(open_base(opened.base).config)
    required = {entry.name for entry in session.get_inputs()}
    assert required == {*INPUT_NAMES, *opened.model._past}
    found = {entry.name: entry.shape for entry in session.get_overridable_initializers()}
    assert len(found) == 2 * len(shapes)
    for module, (out, inner) in shapes.items():
        rank, width = found[f"{module}.lora_A.weight"]
        assert (width, found[f"{module}.lora_B.weight"]) == (inner, [out, rank])
        assert isinstance(rank, str)


def test_plain_onnxruntime_activates_the_file(
    opened: Opened, adapter: Path, patterned: Path, tmp_path: Path
) -> None:
    """As its documentation has it: LoraAdapter, RunOptions, numpy; another version is a file."""
    import onnxruntime as ort

    own = opened.file
    other = tmp_path / "patterned.onnx_adapter"
    write_onnx_adapter(open_source(str(patterned), str(opened.base)), other)
    session = ort.InferenceSession(opened.folder / "model.onnx")
    rows, capacity = 2, 12
    batch = GraphBatch(
        input_ids=torch.tensor([[0, 5, 6], [7, 8, 9]]),
        position_ids=torch.tensor([[0, 0, 1], [0, 1, 2]]),
        cache_start=torch.zeros(rows, dtype=torch.int64),
        attention_mask=torch.tensor([[0, 1, 1], [1, 1, 1]]).repeat(1, capacity // 3),
        logits_rows=torch.tensor([[2, 1], [2, 1]]),
    )
    shape = opened.model.shape
    feeds = {name: getattr(batch, name).numpy() for name in INPUT_NAMES} | {
        f"past_key_values.{name}": tensor.numpy()
        for name, tensor in zip(shape.cache_names, shape.new_cache(rows, capacity), strict=True)
    }
    for path, folder in [(own, adapter), (other, patterned), (None, None), (own, adapter)]:
        options = ort.RunOptions()
        if path is not None:
            active = ort.LoraAdapter()
            active.Load(str(path))
            options.add_active_adapter(active)
        [found] = session.run(["logits"], feeds, options)
        packed = None if folder is None else opened.pack(folder)
        wanted = opened.model.run(batch, shape.new_cache(rows, capacity), packed)
        np.testing.assert_allclose(found, wanted.numpy(), atol=TOLERANCE)


def test_the_file_says_what_was_packed_and_for_which_base(opened: Opened, adapter: Path) -> None:
    import onnxruntime as ort

    read, packed = opened.model.read_adapter(opened.file), opened.pack(adapter)
    assert read.keys() == packed.keys()
    assert all(torch.equal(read[name], packed[name]) for name in packed)
    header = ort.AdapterFormat.read_adapter(str(opened.file))
    fingerprint = open_base(opened.base).fingerprint
    assert (header.get_adapter_version(), header.get_model_version()) == (
        1,
        int(fingerprint[:7], 16),
    )


def test_an_adapter_of_another_base_is_not_packed(opened: Opened, adapter: Path) -> None:
    weights = open_source(str(adapter), str(opened.base)).weights
    pair = weights.pairs[A_LAYER]
    for module, other, reason in [
        ("model.layers.7.mlp.down_proj", pair, "no linear layer model.layers.7.mlp.down_proj"),
        (A_LAYER, replace(pair, a=pair.a[:, :-1]), "64x127 in the adapter and 64x128"),
        (A_LAYER, replace(pair, b=pair.b[:-1]), "63x128 in the adapter and 64x128"),
    ]:
        with pytest.raises(AdapterRejected, match=reason):
            opened.model.pack(replace(weights, pairs={**weights.pairs, module: other}))


Change = Callable[[dict[str, np.ndarray[Any, Any]]], object]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda sides: sides.clear(), "changes no module"),
        (lambda sides: sides.pop(A_SIDE), f"{A_LAYER} has no lora_A"),
        (lambda sides: sides.pop(f"{A_LAYER}.lora_B.weight"), f"{A_LAYER} has no lora_B"),
        (lambda sides: sides.update(other=np.zeros((1, 1), np.float32)), "no input 'other'"),
        (
            lambda sides: sides.update({"lm_head.lora_A.weight": np.zeros((1, 64), np.float32)}),
            "no input 'lm_head.lora_A.weight'",
        ),
        (
            lambda sides: sides.update({A_SIDE: np.zeros((4, 128), np.half)}),
            "is torch.float16, the graph takes float32",
        ),
        (
            lambda sides: sides.update({f"{A_LAYER}.lora_B.weight": np.zeros((1, 4), np.float32)}),
            r"lora_B \[1, 4\]; the graph takes \[rank, 128\] and \[64, rank\]",
        ),
        (
            lambda sides: sides.update({A_SIDE: np.zeros((3, 128), np.float32)}),
            r"lora_A \[3, 128\] and lora_B \[64, 4\]",
        ),
        (
            lambda sides: sides.update({A_SIDE: np.zeros((4, 127), np.float32)}),
            r"lora_A \[4, 127\] and lora_B \[64, 4\]",
        ),
        (
            lambda sides: sides.update({A_SIDE: np.zeros((128,), np.float32)}),
            r"lora_A \[128\]",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    opened: Opened, adapter: Path, tmp_path: Path, change: Change, reason: str
) -> None:
    import onnxruntime as ort

    sides = {name: side.numpy() for name, side in opened.pack(adapter).items()}
    change(sides)
    made = ort.AdapterFormat()
    made.set_parameters({k: ort.OrtValue.ortvalue_from_numpy(v) for k, v in sides.items()})
    made.export_adapter(str(tmp_path / "made"))
    with pytest.raises(AdapterRejected, match=reason):
        opened.model.read_adapter(tmp_path / "made")


def test_a_file_that_is_no_adapter_is_refused(opened: Opened, tmp_path: Path) -> None:
    whole = opened.file.read_bytes()
    for content in (b"", b"no adapter", whole[: len(whole) // 2]):
        (tmp_path / "made").write_bytes(content)
        with pytest.raises(Corrupt, match=r"made is no whole \.onnx_adapter file"):
            opened.model.read_adapter(tmp_path / "made")
    with pytest.raises(NotFound, match="there is no adapter file"):
        opened.model.read_adapter(tmp_path / "absent")


def test_a_proof_reads_the_file_and_not_the_adapter_it_was_made_from(
    opened: Opened, patterned: Path, tmp_path: Path
) -> None:
    record = ExportRecord(
        format="onnx-adapters",
        adapter_id="random",
        adapter_hash="",
        adapter_source="gone",
        base_id="tiny",
        base_fingerprint="",
        base_source=str(opened.base),
        quantization="none",
        merge="none",
        fingerprint="",
        options={},
        settings={},
        versions={},
        created_at="",
        files={"adapters/x.onnx_adapter": FileEntry(num_bytes=1, sha256="")},
    )
    write_json(tmp_path / RECORD_FILE, record.model_dump(mode="json"))
    (tmp_path / "adapters").mkdir()
    source = open_source(str(patterned), str(opened.base))
    write_onnx_adapter(source, tmp_path / "adapters" / "x.onnx_adapter")
    found, wanted = packed_adapter(opened.model, tmp_path), opened.pack(patterned)
    assert found is not None
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    for names in ((), ("a.onnx_adapter", "b.onnx_adapter")):
        files = dict.fromkeys(names, FileEntry(num_bytes=1, sha256=""))
        other = record.model_copy(update={"files": files})
        write_json(tmp_path / RECORD_FILE, other.model_dump(mode="json"))
        with pytest.raises(Corrupt, match=rf"records {len(names)} \.onnx_adapter files"):
            packed_adapter(opened.model, tmp_path)


def test_a_full_disk_leaves_the_file_that_was_there(
    opened: Opened, patterned: Path, tmp_path: Path
) -> None:
    path = tmp_path / "x.onnx_adapter"
    path.write_bytes(b"as it was")
    source = open_source(str(patterned), str(opened.base))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(StorageError, match=r"x\.onnx_adapter cannot be written"):
            write_onnx_adapter(source, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == b"as it was"


def test_a_merged_graph_takes_none(opened: Opened, adapter: Path, float32_graph: Path) -> None:
    merged = load_onnx(float32_graph.parent, num_threads=1)
    assert not merged.takes_adapters
    shape = merged.shape
    one = torch.zeros(1, 1, dtype=torch.int64)
    batch = GraphBatch(one, one, one[0], torch.ones(1, 4, dtype=torch.int64), one)
    for call in (
        lambda: merged.pack(open_source(str(adapter), str(opened.base)).weights),
        lambda: merged.read_adapter(opened.file),
        lambda: merged.run(batch, shape.new_cache(1, 4), opened.pack(adapter)),
    ):
        with pytest.raises(InvalidInput, match="takes no adapter: its own is merged"):
            call()
