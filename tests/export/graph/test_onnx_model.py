"""ONNX Runtime beside transformers: ragged, padded, in place."""

from __future__ import annotations

from pathlib import Path

import pytest

from artifacts.exported.onnx_model import OnnxModel, load_onnx
from export.source import merged_model, open_source
from tests.export.graph.agreement import largest_difference


@pytest.fixture(scope="module")
def model(float32_graph: Path) -> OnnxModel:
    return load_onnx(float32_graph.parent, num_threads=1)


def test_ragged_prefill_and_decode_are_as_transformers_has_them(
    model: OnnxModel, tiny_base: Path, adapter: Path
) -> None:
    reference = merged_model(open_source(str(adapter), str(tiny_base)))
    assert largest_difference(model, reference) <= 1e-4
