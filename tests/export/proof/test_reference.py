"""The reference is transformers' and PEFT's own, on the base as the adapter saw it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from artifacts.errors import Corrupt
from export.proof.prove import Reference
from export.proof.reference import answer_all, load_reference
from export.source import MergedTensors, open_source


def test_answers_are_those_of_each_row_alone(llama: Reference) -> None:
    """Padding, chunks and batches change nothing: generate's own greedy tokens, row by row."""
    model = load_reference(llama.source)
    for answers in llama.adapted:
        for i, prompt in enumerate(answers.prompts):
            ids, wanted = torch.tensor([prompt]), answers.greedy[i]
            with torch.no_grad():
                found = model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    do_sample=False,
                    max_new_tokens=len(wanted),
                    min_new_tokens=len(wanted),
                    eos_token_id=None,
                )
                alone = model(torch.tensor([answers.rows[i].token_ids])).logits[0]
            assert torch.equal(found[0, len(prompt) :], wanted)
            stored = llama.file.read(answers.first[i], len(alone))
            torch.testing.assert_close(stored, alone, atol=2e-6, rtol=0)


def test_a_dequantised_base_is_compared_with_itself(tiny_base: Path, adapter: Path) -> None:
    pytest.importorskip("bitsandbytes")
    original = open_source(str(adapter), str(tiny_base))
    trained: Any = SimpleNamespace(settings={"quantization": "nf4"})
    source = replace(original, merge="dequantized", manifest=trained)
    name = "model.layers.0.mlp.up_proj.weight"
    wanted = MergedTensors(source).base_tensor(name)
    model = load_reference(source).get_base_model()
    found = model.get_submodule("model.layers.0.mlp.up_proj").base_layer.weight
    assert torch.equal(found, wanted)
    assert not torch.equal(wanted, MergedTensors(original).base_tensor(name))


def test_an_adapter_that_answers_nan_itself_is_named(llama: Reference) -> None:
    model = load_reference(llama.source)
    with torch.no_grad():
        model.get_base_model().model.norm.weight.fill_(float("nan"))
    with pytest.raises(Corrupt, match="base and adapter themselves answer NaN"):
        answer_all(model, llama.questions, frozenset({1}), llama.file, lambda _: None)
