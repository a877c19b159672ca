"""LoRA's variants: each learns, serves as plain LoRA, and answers otherwise than the base."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from artifacts.base import load_transformers_model, open_base
from artifacts.home import Home
from tests.training.methods.runs import (
    adapted_model,
    answer,
    figures,
    losses,
    served,
    train,
    versions,
)
from training.config import parse_config
from training.evaluation import held_out_loss
from training.inputs import load_inputs
from training.methods.lora import Lora, lora_pairs
from training.plan import make_plan

VARIANTS: dict[str, dict[str, Any]] = {
    "rslora": {"use_rslora": True, "initialisation": "gaussian"},
    "pissa": {"initialisation": "pissa", "rank": 3},
    "olora": {"initialisation": "olora", "use_rslora": True, "learning_rate": 4e-3},
    "loraplus": {"loraplus_ratio": 4, "learning_rate": 5e-3},
    "layers": {
        "layers_to_transform": [1],
        "target_modules": ["q_proj", "down_proj"],
        "learning_rate": 0.03,
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_learns_serves_and_changes_the_answer(
    settings: dict[str, Any], variant: str
) -> None:
    more = VARIANTS[variant]
    told = losses(train(settings, **more))
    assert told[-1] < 0.95 * told[0]
    (version,) = versions(settings)
    weights, metrics = served(settings, version.path), figures(version)
    doubled = 2 if more.get("initialisation") in ("pissa", "olora") else 1
    assert weights.rank == doubled * more.get("rank", settings["rank"])
    if variant == "layers":
        assert set(weights.pairs) == {"model.layers.1.mlp.down_proj",
                                      "model.layers.1.self_attn.q_proj"}  # fmt: skip
    assert metrics["merge_difference"] < 1e-4  # merged into the base as it was before the run

    # PEFT, from the folder alone on a fresh base, has the loss that was measured on the live one
    model = adapted_model(settings, version.path)
    test = load_inputs(parse_config(settings), Home.open(settings["home"])).data.split.test
    assert held_out_loss(model, test, 3).loss == pytest.approx(metrics["adapter_loss"], rel=1e-4)
    base = load_transformers_model(open_base(settings["base"]))
    assert held_out_loss(base, test, 3).loss == pytest.approx(metrics["base_loss"], rel=1e-5)
    assert answer(model, settings["base"], "What is 3?") != answer(
        base, settings["base"], "What is 3?"
    )


@pytest.mark.parametrize("initialisation", ["pissa", "olora"])
def test_before_the_first_step_a_decomposition_answers_as_the_base(
    settings: dict[str, Any], initialisation: str
) -> None:
    """And afterwards the base lies in the model exactly as in its file."""
    base = open_base(settings["base"])
    config = parse_config({**settings, "initialisation": initialisation})
    method = Lora(config, base, make_plan(config, base.config, 32, "cpu"), None)
    model, plain = method.build().eval(), load_transformers_model(base)
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        assert torch.allclose(model(ids).logits, plain(ids).logits, atol=1e-5)
        with model.disable_adapter():
            assert not torch.allclose(model(ids).logits, plain(ids).logits, atol=1e-2)
        method.restore_base(model)
        with model.disable_adapter():
            assert torch.equal(model(ids).logits, plain(ids).logits)


def test_loraplus_gives_b_the_faster_rate(settings: dict[str, Any]) -> None:
    base = open_base(settings["base"])
    config = parse_config({**settings, "loraplus_ratio": 16, "weight_decay": 0.1})
    method = Lora(config, base, make_plan(config, base.config, 32, "cpu"), None)
    model = method.build()
    optimizer = method.make_optimizer(model, torch.optim.AdamW, {"lr": 1e-3})
    rates = {id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups
             for p in group["params"]}  # fmt: skip
    for a, b in lora_pairs(model).values():
        assert rates[id(a)] == (1e-3, 0.1)
        assert rates[id(b)] == (pytest.approx(16e-3), 0.1)
