"""Blocks of 4 and 8 bits: what the quantised graph computes is what its dequantised weights do."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from artifacts.errors import InvalidInput
from artifacts.exported.onnx_model import load_onnx
from export.block_format import Blocks
from export.calibration.calibrate import calibrate
from export.forms.form import Options, Workshop
from export.forms.onnx_blocks import INT4, INT8, OnnxBlocks
from export.source import MergedTensors, merged_model
from tests.export.graph.agreement import expected_logits, logits_of

FORMS = pytest.mark.parametrize("form", [INT4, INT8])


@pytest.mark.parametrize("bits", [4, 8])
def test_blocks_are_within_half_a_step_of_their_weights(bits: int) -> None:
    weight = np.random.default_rng(0).normal(size=(6, 128)).astype(np.float32)
    blocks = Blocks(bits, 32)
    packed, scales = blocks.quantize(weight)
    error = np.abs(blocks.dequantize((packed, scales)) - weight).reshape(6, 4, 32)
    # The largest weight of a block is exact; one of the other sign as large as it is cut off.
    assert (error <= np.abs(scales)[:, :, None] * 1.001).all()
    assert (error <= np.abs(scales)[:, :, None] * 0.501).mean() > 0.97


def test_searched_scales_err_less_and_survive_blocks_of_zeros() -> None:
    weight = np.random.default_rng(0).normal(size=(6, 128)).astype(np.float32)
    weight[2] = 0

    def error(blocks: Blocks) -> float:
        return float(np.square(blocks.dequantize(blocks.quantize(weight)) - weight).sum())

    searched = Blocks(4, 32, is_searched=True)
    assert error(searched) < 0.95 * error(Blocks(4, 32))
    assert (searched.dequantize(searched.quantize(weight))[2] == 0).all()


def write(form: OnnxBlocks, workshop: Workshop, options: Options, folder: Path) -> ir.Model:
    form.check(workshop.source, options)
    form.write(workshop, options, folder)
    return ir.load(folder / "model.onnx")


@torch.no_grad()
def dequantised_reference(workshop: Workshop, form: OnnxBlocks, options: Options) -> Any:
    """transformers with the weights that the blocks stand for."""
    source, form_of = workshop.source, partial(form._form, options)
    is_calibrated = options.calibrate and form is INT4
    given = calibrate(source, form_of, lambda *_: None) if is_calibrated else {}
    model, merged = merged_model(source), MergedTensors(source)
    for name, parameter in model.named_parameters():
        blocks = form_of(name)
        if parameter.ndim == 2 and blocks is not None:
            quantized = given.get(name) or blocks.quantize(merged[name].numpy())
            parameter.copy_(torch.from_numpy(blocks.dequantize(quantized)))
    return model


@pytest.mark.parametrize(
    ("form", "options"),
    [
        (INT8, Options(block_size=32)),
        (INT8, Options(block_size=32, keep_head=True)),
        (INT4, Options(block_size=32)),
        (INT4, Options(block_size=32, keep_head=True, calibrate=False)),
    ],
)
def test_the_graph_computes_what_its_dequantised_weights_compute(
    form: OnnxBlocks, options: Options, workshop: Workshop, tmp_path: Path
) -> None:
    """But for activations of 8 bits, a hundredth of the logits; a wrong block is far beyond."""
    write(form, workshop, options, tmp_path)
    model = load_onnx(tmp_path, num_threads=1)
    found = torch.cat(logits_of(model))
    reference = dequantised_reference(workshop, form, options)
    expected = torch.cat(expected_logits(reference, model.shape.vocab_size))
    assert (found - expected).norm() / expected.norm() < 0.02


@pytest.mark.parametrize(("form", "keep_head"), [(INT4, False), (INT4, True), (INT8, True)])
def test_bits_of_each_weight(form: OnnxBlocks, keep_head: bool) -> None:
    options = Options(keep_head=keep_head)

    def bits(name: str) -> int | None:
        found = form._form(options, name)
        return None if found is None else found.bits

    body = 4 if form is INT4 else 8
    wider = 8 if form is INT4 else None
    assert bits("model.layers.0.mlp.up_proj.weight") == body
    assert bits("model.layers.0.self_attn.v_proj.weight") == 8
    assert bits("model.embed_tokens.weight") == (wider if keep_head else body)


@FORMS
def test_a_tied_embedding_is_stored_once(
    form: OnnxBlocks, workshop: Workshop, tmp_path: Path
) -> None:
    model = write(form, workshop, Options(calibrate=False), tmp_path)
    named = model.graph.initializers
    table = named["model.embed_tokens.weight.rows"].const_value
    blocks = named["model.embed_tokens.weight.blocks"].const_value
    assert isinstance(table, ir.ExternalTensor)
    assert isinstance(blocks, ir.ExternalTensor)
    assert (table.offset, table.length) == (blocks.offset, blocks.length)
    assert table.numpy().tobytes() == blocks.numpy().tobytes()
    size = (tmp_path / "model.onnx.data").stat().st_size
    assert size == pytest.approx(form.num_bytes(workshop.source, Options()), rel=0.1)


def test_a_block_size_that_does_not_divide_is_refused_with_one_that_does(
    workshop: Workshop,
) -> None:
    with pytest.raises(InvalidInput, match=r"block_size=128 does not divide the 64 inputs.*64"):
        INT4.check(workshop.source, Options(block_size=128))
