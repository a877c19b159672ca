"""The gate decides rightly: what rounds passes, what costs too much is refused, in any form."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from artifacts.exported.formats import FORMATS
from export.proof.prove import Reference, compare, judged
from export.proof.tolerances import judge, tolerances_of
from tests.export.proof.candidates import changed
from tests.export.proof.test_faults import updated

FIGURES = {"num_not_finite": 0.0, "decode_kl_factor": 1.0}


@pytest.mark.parametrize(
    ("form", "dtype", "figure", "kept", "refused"),
    [
        ("onnx", "bfloat16", "max_logit_diff", 1e-4, 1.01e-4),
        ("torchscript", "float32", "greedy_agreement", 1.0, 0.9999),
        ("merged", "float32", "max_logit_diff", 1e-4, 1.01e-4),
        ("merged", "bfloat16", "max_logit_diff_share", 0.05, 0.0501),
        ("merged", "float16", "max_logit_diff_share", 0.01, 0.0101),
        ("gguf", "bfloat16", "perplexity_change_percent", -0.5, 0.51),
        ("onnx-fp16", "bfloat16", "perplexity_change_percent", 0.5, -0.51),
        ("onnx-int4", "bfloat16", "perplexity_change_percent", 3.0, 3.01),
        ("nf4", "float32", "perplexity_change_percent", -3.0, -3.01),
        ("int8", "float32", "decode_kl_factor", 1.5, 1.51),
        ("onnx-int8", "float32", "adapter_effect_change_percent", -30, -30.1),
        ("gguf-q4_0", "float32", "num_not_finite", 0, 1),
        ("onnx-int8", "float32", "num_texts_tokenized_otherwise", 0, 1),
    ],
)
def test_each_bound_is_where_the_table_says(
    form: str, dtype: str, figure: str, kept: float, refused: float
) -> None:
    rules = tolerances_of(form, dtype)
    assert judge(form, {**FIGURES, figure: kept}, rules) == []
    [failure] = judge(form, {**FIGURES, figure: refused}, rules)
    assert f"is {refused:.4g} (allowed: " in failure
    assert judge(form, {**FIGURES, figure: float("nan")}, rules)


def test_every_form_is_held_to_something() -> None:
    for form in FORMATS:
        for dtype in ("float32", "bfloat16", "float16"):
            assert len(tolerances_of(form, dtype)) >= 4


def test_a_failure_says_what_to_try() -> None:
    rules = tolerances_of("onnx-int4", "float32")
    [failure] = judge("onnx-int4", {"perplexity_change_percent": 4.2}, rules)
    assert failure == (
        "the change of perplexity in percent is 4.2 (allowed: within ± 3); "
        "try --keep-head or a smaller --block-size"
    )


def noise(level: float) -> Any:
    """As rounding of weights leaves it: ``level`` of each matrix's standard deviation."""

    def change(model: Any) -> None:
        draw = torch.Generator().manual_seed(0)
        for parameter in model.parameters():
            if parameter.dim() == 2:
                random = torch.randn(parameter.shape, generator=draw)
                parameter.add_(random * parameter.std() * level)

    return change


@pytest.mark.parametrize(("level", "is_kept"), [(0.01, True), (0.08, False)])
def test_noise_of_weights_is_judged_by_what_it_costs(
    level: float, is_kept: bool, embedded: Reference
) -> None:
    figures = compare(changed(embedded, noise(level)), embedded, None, lambda _: None)
    _, failures = judged("onnx-int4", embedded.source, figures)
    cost = figures["perplexity_change_percent"]
    assert (abs(cost) <= 3) == is_kept
    assert (failures == []) == is_kept
    assert figures["decode_kl_factor"] == pytest.approx(1, abs=0.01)  # its cache is right
    assert judged("onnx", embedded.source, figures)[1]  # noise is none of float32's


def test_near_ties_do_not_count_as_disagreement(llama: Reference) -> None:
    """Two tokens with the same weights: either may be the best of a float32 export."""

    def change(model: Any) -> None:
        model.lm_head.weight[:, 0] += 1e-7

    figures = compare(changed(llama, change), llama, None, lambda _: None)
    assert figures["max_logit_diff"] > 0
    assert judged("onnx", llama.source, figures)[1] == []


@pytest.mark.parametrize("share", [1, 0.5, 2, 0])
def test_a_weak_adapter_is_whole_or_refused(share: float, embedded: Reference) -> None:
    """Half of it, twice or nothing of it costs less perplexity than a quantised form may."""

    def change(model: Any) -> None:
        updated(embedded, lambda pair: share * pair.scaling * pair.b @ pair.a)(model)
        noise(0.005)(model)

    figures = compare(changed(embedded, change), embedded, None, lambda _: None)
    assert abs(figures["perplexity_change_percent"]) < 3
    assert figures["adapter_effect_change_percent"] == pytest.approx(100 * (share - 1), abs=20)
    _, failures = judged("onnx-int4", embedded.source, figures)
    if share == 1:
        assert failures == []
    else:
        assert failures[0].startswith("the change of the adapter's effect in percent is ")


def test_rounding_that_outweighs_the_adapter_leaves_nothing_to_judge(embedded: Reference) -> None:
    figures = compare(changed(embedded, noise(0.02)), embedded, None, lambda _: None)
    assert figures["adapter_kl"] < figures["prefill_kl"]
    assert "adapter_effect_change_percent" not in figures
