"""Each family's own parts in the graph: biases, norms of queries and keys, a head of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from artifacts.adapter import LoraWeights
from artifacts.base import open_base
from artifacts.errors import InvalidInput
from artifacts.exported.onnx_model import load_onnx
from export.forms.form import Options, Workshop
from export.forms.onnx import FLOAT16, FLOAT32
from export.forms.onnx_blocks import INT4
from export.graph.fill import maker
from export.source import Source, merged_model
from tests.export.graph.agreement import expected_logits, largest_difference, logits_of
from tests.training.conftest import write_tokenizer

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 256,
    "eos_token_id": 257,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": {"tie_word_embeddings": False},
    "qwen3": {"tie_word_embeddings": True, "head_dim": 24},
    "mistral": {"tie_word_embeddings": False, "sliding_window": None},
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0}


def workshop_of(family: str, folder: Path, **more: Any) -> Workshop:
    """A random base without an adapter; nothing of it is zero or one, as fresh biases and norms."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = SIZES | FAMILIES[family] | more
    config = AutoConfig.for_model(family, vocab_size=write_tokenizer(folder), **sizes)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(folder)
    nothing = LoraWeights({}, 1, 1.0, (), "none", 0, {})
    base = open_base(folder)
    source = Source(base, str(folder), "none", "none", folder, nothing, None, "original")
    return Workshop(source, lambda *_: None)


@pytest.mark.slow  # test_all_forms has the common ones' whole proofs
@pytest.mark.parametrize("family", ["qwen2", "qwen3", "mistral"])
def test_each_family_is_as_transformers_has_it(family: str, tmp_path: Path) -> None:
    workshop = workshop_of(family, tmp_path)
    reference = merged_model(workshop.source)
    for form, limit in ((FLOAT32, 1e-4), (INT4, 1.0)):
        folder = tmp_path / type(form).__name__
        folder.mkdir()
        form.write(workshop, Options(block_size=16), folder)
        model = load_onnx(folder, num_threads=1)
        assert largest_difference(model, reference) <= limit
    assert model.shape.num_kv_heads == 2
    assert model.shape.head_dim == FAMILIES[family].get("head_dim", 16)


@pytest.mark.slow
def test_a_scaled_rotation_is_as_transformers_has_it(tmp_path: Path) -> None:
    workshop = workshop_of("mistral", tmp_path, rope_parameters=YARN)
    (tmp_path / "graph").mkdir()
    FLOAT32.write(workshop, Options(), tmp_path / "graph")
    model = load_onnx(tmp_path / "graph", num_threads=1)
    assert largest_difference(model, merged_model(workshop.source)) <= 1e-4


@pytest.mark.slow
def test_float16_is_within_its_own_rounding(workshop: Workshop, tmp_path: Path) -> None:
    FLOAT16.write(workshop, Options(), tmp_path)
    model = load_onnx(tmp_path, num_threads=1)
    assert model.shape.cache_dtype == torch.float16
    reference = merged_model(workshop.source)
    expected = torch.cat(expected_logits(reference, model.shape.vocab_size))
    found = torch.cat(logits_of(model))
    assert 0 < (found - expected).norm() / expected.norm() < 2e-3
    size = (tmp_path / "model.onnx.data").stat().st_size
    assert size == pytest.approx(FLOAT16.num_bytes(workshop.source, Options()), rel=0.1)


def test_a_weight_beyond_float16_is_refused_by_name() -> None:
    value = ir.Value(name="w", type=ir.TensorType(ir.DataType.FLOAT16), shape=ir.Shape([2]))
    assert maker({"w": torch.tensor([1.0, 65504.0])}, value)().dtype == np.float16
    with pytest.raises(InvalidInput, match="w holds 70000, float16 goes to 65504"):
        maker({"w": torch.tensor([1.0, -70000.0])}, value)()


def test_a_graph_names_its_weights_and_no_place_on_this_machine(float32_graph: Path) -> None:
    graph = ir.load(float32_graph).graph
    names = set(graph.initializers)
    assert "model.layers.0.self_attn.q_proj.weight" in names
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names  # tied: one weight
    kinds = {node.op_type for node in graph}
    assert {"RMSNormalization", "RotaryEmbedding"} <= kinds
    content = float32_graph.read_bytes()
    for secret in (b"site-packages", b".py", str(Path.home()).encode()):
        assert secret not in content
