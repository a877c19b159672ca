"""docs/llama-factory.md says of every key what is done with it."""

from __future__ import annotations

from pathlib import Path

from training.config import TrainingConfig
from training.llamafactory.entries import Taken
from training.llamafactory.keys import GROUPS, KEYS
from training.llamafactory.reader import DEFAULTS
from training.llamafactory.table import table

PAGE = Path(__file__).resolve().parents[3] / "docs" / "llama-factory.md"


def test_the_page_ends_with_the_table() -> None:
    assert PAGE.read_text(encoding="utf-8").endswith(table())
    assert len(KEYS) == sum(map(len, GROUPS.values())), "a key stands in two groups"


def test_what_a_key_becomes_exists() -> None:
    ours = set(TrainingConfig.model_fields) | {"--output", "--shard-gb"}
    taken = {entry.to.partition(".")[0] for entry in KEYS.values() if isinstance(entry, Taken)}
    assert taken <= ours
    assert DEFAULTS.keys() <= ours
