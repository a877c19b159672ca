"""The loader: in place, in a buffer that is used again, and what it says of broken files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from torch import Tensor

from artifacts.errors import Corrupt, InvalidInput
from artifacts.exported.graph import GraphBatch
from artifacts.exported.onnx_model import OnnxModel, graph_shape, load_onnx
from export.forms.form import Workshop
from export.source import merged_model
from tests.export.graph.agreement import CAPACITY, LENGTHS, WIDTH, largest_difference, prompts

BIG = 1 << 16  # places


@pytest.fixture(scope="module")
def model(float32_graph: Path) -> OnnxModel:
    return load_onnx(float32_graph.parent, num_threads=1)


def test_ragged_prefill_and_decode_are_as_transformers_has_them(
    model: OnnxModel, workshop: Workshop
) -> None:
    assert largest_difference(model, merged_model(workshop.source)) <= 1e-4


def test_the_cache_is_written_in_place_and_only_where_the_tokens_lie(model: OnnxModel) -> None:
    larger = [tensor.fill_(7.7) for tensor in model.shape.new_cache(5, CAPACITY)]
    rows = [tensor[1:4] for tensor in larger]
    model.run(prompts(model.shape.vocab_size), rows)
    for tensor in larger:
        assert (tensor[1:4, :, :WIDTH] != 7.7).all()
        assert (tensor[1:4, :, WIDTH:] == 7.7).all()
        assert (tensor[0] == 7.7).all()
        assert (tensor[4] == 7.7).all()


def write_us(graph: Path, folder: Path, *, is_in_place: bool) -> float:
    """Microseconds that one layer's keys take to be written into a cache of `BIG` places."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / f"profile_{is_in_place}")
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    model = OnnxModel(session, graph_shape(session))
    cache = model.shape.new_cache(1, BIG)
    for place in range(6):
        one = torch.tensor([[place]])
        mask = (torch.arange(BIG) <= place).long()[None]
        batch = GraphBatch(one + 3, one, one[0], mask, torch.zeros_like(one))
        if is_in_place:
            model.run(batch, cache)
        else:
            names = [entry.name for entry in session.get_inputs()]
            session.run(None, dict(zip(names, _arrays(batch, cache), strict=True)))
    events = json.loads(Path(session.end_profiling()).read_text())
    times = [e["dur"] for e in events if e.get("args", {}).get("op_name") == "ScatterElements"]
    assert len(times) >= 6 * 2 * model.shape.num_layers
    return float(sorted(times)[len(times) // 2])


def _arrays(batch: GraphBatch, cache: Sequence[Tensor]) -> list[object]:
    values = (batch.input_ids, batch.position_ids, batch.cache_start, batch.attention_mask)
    return [value.numpy() for value in (*values, batch.logits_rows, *cache)]


def test_no_step_copies_the_cache(float32_graph: Path, tmp_path: Path) -> None:
    """One token's keys against the same graph's with outputs of their own, which are copies."""
    in_place = write_us(float32_graph, tmp_path, is_in_place=True)
    copied = write_us(float32_graph, tmp_path, is_in_place=False)
    assert in_place * 5 < copied, f"{in_place} us in place, {copied} us with a copy"


def test_logits_lie_in_a_buffer_that_is_used_again(model: OnnxModel) -> None:
    cache = model.shape.new_cache(len(LENGTHS), CAPACITY)
    batch = prompts(model.shape.vocab_size)
    first = model.run(batch, cache)
    kept = first.clone()
    again = model.run(batch, cache)
    assert again.data_ptr() == first.data_ptr()
    assert torch.equal(again, kept)


def test_a_merged_graph_takes_no_adapter(model: OnnxModel) -> None:
    batch = prompts(model.shape.vocab_size)
    with pytest.raises(InvalidInput, match="its own is merged"):
        model.run(batch, model.shape.new_cache(len(LENGTHS), CAPACITY), {})


def test_what_is_no_graph_of_ours_is_corrupt(float32_graph: Path, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(float32_graph.parent, folder)
    whole = (folder / "model.onnx.data").read_bytes()
    (folder / "model.onnx.data").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Corrupt, match="export it again"):
        load_onnx(folder)
    (folder / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(Corrupt, match="export it again"):
        load_onnx(folder)
    other = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1]))
    node = ir.node("Abs", [other])
    node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = "y", other.type, other.shape
    graph = ir.Graph([other], node.outputs, nodes=[node], opset_imports={"": 23}, name="other")
    ir.save(ir.Model(graph, ir_version=11), folder / "model.onnx")
    with pytest.raises(Corrupt, match="inputs and outputs"):
        load_onnx(folder)
