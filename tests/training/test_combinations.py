"""Keys that mean nothing together are refused by name, when the configuration is read."""

from __future__ import annotations

from typing import Any

import pytest

from training.config import parse_config
from training.errors import InvalidConfig
from training.keys.adapter import AdapterKeys

REFUSED: list[tuple[dict[str, Any], str, str]] = [
    *(
        ({"method": method, key: value}, key, f"method={method} trains the base's own weights")
        for method in ("full", "freeze")
        for key, value in [
            ("rank", 8),
            ("alpha", 3.0),
            ("dropout", 0.1),
            ("target_modules", ["q_proj"]),
            ("layers_to_transform", [0]),
            ("use_rslora", True),
            ("initialisation", "pissa"),
            ("loraplus_ratio", 16.0),
            ("start_from", "a@1"),
            ("quantization", "nf4"),
        ]
    ),
    ({"method": "full", "gate": "strict"}, "gate", "is for adapters"),
    ({"method": "full", "suite": "s.yaml"}, "suite", "is for adapters"),
    ({"method": "full", "kept_checkpoints": 2}, "kept_checkpoints", "is for adapters"),
    ({"method": "full", "objective": "dpo"}, "method", "objective=dpo trains an adapter"),
    ({"method": "freeze", "objective": "dpo"}, "method", "objective=dpo trains an adapter"),
    ({"method": "freeze", "trainable_layers": 0}, "trainable_layers", "no layer would be trained"),
    ({"trainable_layers": 3}, "trainable_layers", "belongs to method=freeze, this is lora"),
    ({"adalora_initial_rank": 32}, "adalora_initial_rank", "belongs to method=adalora"),
    ({"adalora_interval": 5}, "adalora_interval", "belongs to method=adalora"),
    ({"adalora_final_ratio": 0.1}, "adalora_final_ratio", "belongs to method=adalora"),
    ({"adalora_warmup_ratio": 0.2}, "adalora_warmup_ratio", "belongs to method=adalora"),
    *(
        ({"method": "adalora", key: value}, key, "method=adalora does not support it")
        for key, value in [
            ("use_rslora", True),
            ("initialisation", "olora"),
            ("loraplus_ratio", 4.0),
            ("start_from", "a@1"),
            ("quantization", "int8"),
        ]
    ),
    ({"method": "adalora", "adalora_initial_rank": 16}, "adalora_initial_rank", "above rank=16"),
    ({"method": "adalora", "rank": 256}, "rank", "begins with 1.5 × rank"),
    (
        {"method": "adalora", "adalora_warmup_ratio": 0.5, "adalora_final_ratio": 0.5},
        "adalora_final_ratio",
        "no step is left",
    ),
    ({"initialisation": "pissa", "rank": 129}, "rank", "take rank 128 or less"),
    ({"initialisation": "pissa", "quantization": "nf4"}, "initialisation", "a quantised base"),
    ({"initialisation": "olora", "start_from": "a@1"}, "initialisation", "start_from=a@1 decides"),
    ({"layers_to_transform": [0], "start_from": "a@1"}, "layers_to_transform", "decides it"),
    ({"double_quantization": False}, "double_quantization", "belongs to nf4, quantization is none"),
    ({"quantization": "int8", "double_quantization": False}, "double_quantization", "is int8"),
    ({"dpo_beta": 0.5}, "dpo_beta", "belongs to objective=dpo, this is sft"),
    ({"dpo_loss": "ipo"}, "dpo_loss", "belongs to objective=dpo"),
    ({"dpo_sft_weight": 1.0}, "dpo_sft_weight", "belongs to objective=dpo"),
    (
        {"objective": "dpo", "dpo_loss": "ipo", "dpo_label_smoothing": 0.1},
        "dpo_label_smoothing",
        "belongs to dpo_loss=sigmoid, this is ipo",
    ),
    ({"objective": "dpo", "packing": True}, "packing", "compares two whole replies"),
    ({"objective": "dpo", "streaming": True}, "streaming", "compares two whole replies"),
    ({"objective": "dpo", "long_rows": "window"}, "long_rows", "compares two whole replies"),
    ({"objective": "dpo", "sampling": "inverse_frequency"}, "sampling", "two whole replies"),
    ({"lr_scheduler": "plateau", "split": [0.8, 0, 0.2]}, "lr_scheduler", "a validation part"),
    ({"lr_scheduler": "plateau", "warmup_steps": 5}, "warmup_steps", "has no warm-up"),
    ({"lr_scheduler": "plateau", "warmup_ratio": 0.1}, "warmup_ratio", "has no warm-up"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "key", "reason"), REFUSED, ids=lambda part: str(part) if isinstance(part, dict) else ""
)
def test_a_key_without_meaning_is_refused_by_name(
    keys: dict[str, Any], key: str, reason: str
) -> None:
    with pytest.raises(InvalidConfig) as caught:
        parse_config({"name": "a", "data": "no such file", **keys})
    assert caught.value.param == key
    assert str(caught.value).startswith(f"{key}=")
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    "keys",
    [
        {"method": "full"},
        {"method": "freeze", "trainable_layers": -2},
        {"method": "adalora", "adalora_initial_rank": 24, "dropout": 0.1},
        {"method": "adalora", "objective": "dpo"},
        {"initialisation": "pissa", "rank": 128, "use_rslora": True},
        {"quantization": "nf4", "loraplus_ratio": 8.0, "double_quantization": False},
        {"quantization": "int8", "objective": "dpo", "dpo_label_smoothing": 0.1},
        {"start_from": "a@1", "quantization": "nf4", "use_rslora": True, "rank": 4},
        {"lr_scheduler": "plateau", "warmup_ratio": 0},
        # a default written out means nothing else than leaving it out
        {"method": "full", "rank": 16, "dropout": 0.0, "target_modules": "all-linear"},
    ],
    ids=str,
)
def test_what_means_something_is_taken(keys: dict[str, Any]) -> None:
    parse_config({"name": "a", "data": "x", **keys})


def test_every_method_key_is_refused_somewhere() -> None:
    """A key of a method that no other method minds would be accepted and ignored there."""
    refused = {key for _, key, _ in REFUSED}
    assert set(AdapterKeys.model_fields) - refused == {"objective"}


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("use_dora", "DoRA's magnitudes cannot be served"),
        ("modules_to_save", "method=full trains a base of its own"),
    ],
)
def test_what_could_not_be_served_says_why(key: str, reason: str) -> None:
    with pytest.raises(InvalidConfig, match=reason):
        parse_config({"name": "a", "data": "x", key: True})
