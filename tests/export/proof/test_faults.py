"""Faults that exports have had elsewhere, planted one by one: the proof refuses each of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from artifacts.adapter import LoraPair
from export.proof.prove import Reference
from export.source import MergedTensors
from tests.export.proof import candidates
from tests.export.proof.candidates import Fault, Faulty, changed, failures, right


@pytest.mark.parametrize("reference", ["llama", "qwen2"])
def test_a_right_export_passes(reference: str, request: pytest.FixtureRequest) -> None:
    found = request.getfixturevalue(reference)
    assert failures(right(found), found) == []


FAULTS = [
    candidates.drop_mask,
    candidates.reverse_positions,
    candidates.step_later,
    candidates.write_over_the_last,
    candidates.write_where_the_first_row_writes,
]


@pytest.mark.parametrize("fault", [*FAULTS, candidates.swap_positions])
def test_a_fault_of_masks_positions_and_places_is_refused(fault: Fault, llama: Reference) -> None:
    assert failures(Faulty(right(llama), fault), llama)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_quantised_form_is_no_excuse_for_it(fault: Fault, embedded: Reference) -> None:
    assert failures(Faulty(right(embedded), fault), embedded, "onnx-int4")


def updated(llama: Reference, update: Callable[[LoraPair], Tensor]) -> Callable[[Any], None]:
    """The base with another update than s·B·A."""

    def change(model: Any) -> None:
        base = MergedTensors(llama.source)
        for module, pair in llama.source.weights.pairs.items():
            name = f"{module}.weight"
            weight = base.base_tensor(name)
            found = update(pair)
            if found.shape == weight.shape:
                model.get_parameter(name).copy_(weight + found)

    return change


@pytest.mark.parametrize(
    "update",
    [
        pytest.param(lambda pair: 2 * pair.scaling * pair.b @ pair.a, id="twice the scaling"),
        pytest.param(lambda pair: 6 / 4 * pair.b @ pair.a, id="rsLoRA forgotten"),
        pytest.param(lambda pair: 0 * pair.b @ pair.a, id="no adapter"),
        pytest.param(lambda pair: pair.scaling * (pair.b @ pair.a).T, id="transposed"),
    ],
)
def test_another_update_is_refused(update: Callable[[LoraPair], Tensor], llama: Reference) -> None:
    assert failures(changed(llama, updated(llama, update)), llama)


def test_the_same_update_passes(llama: Reference) -> None:
    """What the test above changes is the update alone."""
    same = updated(llama, lambda pair: pair.scaling * pair.b @ pair.a)
    assert failures(changed(llama, same), llama) == []


def test_a_missing_bias_is_refused(qwen2: Reference) -> None:
    def change(model: Any) -> None:
        model.model.layers[0].self_attn.q_proj.bias.zero_()

    assert failures(changed(qwen2, change), qwen2)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("form", ["onnx", "onnx-int4", "merged"])
def test_one_logit_that_is_no_number_is_refused(form: str, value: float, llama: Reference) -> None:
    count = 0

    def spoil(logits: Tensor) -> Tensor:
        nonlocal count
        count += 1
        if count == 8:  # some decode step
            logits = logits.clone()
            logits[-1, -1, 5] = value
        return logits

    found = failures(Faulty(right(llama), spoil=spoil), llama, form)
    assert found[0].startswith("logits that are NaN or infinite is 1 (allowed: at most 0)")


def test_nothing_but_nan_is_refused(llama: Reference) -> None:
    spoiled = Faulty(right(llama), spoil=lambda logits: torch.full_like(logits, float("nan")))
    found = failures(spoiled, llama, "onnx-int4")
    assert len(found) == 1
