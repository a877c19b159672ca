"""The ``ft:`` ids read back into what they were made from, and nothing else does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.names import (
    FineTunedId,
    checkpoint_model_id,
    fine_tuned_model_id,
    parse_fine_tuned_model_id,
)

names = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,63}", fullmatch=True)


@given(st.text(st.characters(exclude_characters="\n"), min_size=1), names, st.integers(1, 10**9))
def test_round_trip(base_id: str, name: str, version: int) -> None:
    text = fine_tuned_model_id(base_id, name, version)
    assert parse_fine_tuned_model_id(text) == FineTunedId(base_id, name, version)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "shop@3",
        "ft:base:loraloop:shop",
        "ft:base:loraloop:shop:0",
        "ft:base:loraloop:shop:٣",
        "ft:base:loraloop:Shop:1",
        "ft:base:other:shop:1",
        "ft::loraloop:shop:1",
        "ft:base:loraloop:shop:1\n",
        checkpoint_model_id("base", "shop", "ftjob-" + "a" * 24, 40),
    ],
)
def test_other_texts_are_refused(text: str) -> None:
    assert parse_fine_tuned_model_id(text) is None
