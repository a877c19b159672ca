"""What the base decides about a method's keys is refused before the data is read."""

from __future__ import annotations

from typing import Any

import pytest

from tests.training.methods.runs import train, unreadable
from training.errors import InvalidConfig


@pytest.mark.parametrize(
    ("keys", "key", "message"),
    [
        ({"target_modules": ["query"]}, "target_modules", "target module 'query' matches nothing"),
        ({"layers_to_transform": [2]}, "layers_to_transform", "has the layers 0 to 1"),
        ({"layers_to_transform": []}, "layers_to_transform", "has the layers 0 to 1"),
        ({"method": "adalora", "layers_to_transform": [-1]}, "layers_to_transform", "0 to 1"),
        ({"method": "freeze", "trainable_layers": -3}, "trainable_layers", "has 2 layers"),
        ({"initialisation": "pissa", "rank": 33}, "rank", r"k_proj \(32x64\).*at most 32"),
        ({"initialisation": "olora", "rank": 65, "target_modules": ["q_proj"]}, "rank", "most 64"),
    ],
    ids=str,
)
def test_it_is_refused_by_name(
    settings: dict[str, Any], keys: dict[str, Any], key: str, message: str
) -> None:
    if "rank" not in keys:
        del settings["rank"]
    with pytest.raises(InvalidConfig, match=message) as caught:
        train(settings, **keys, data=unreadable(settings))
    assert caught.value.param == key
