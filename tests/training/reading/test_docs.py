"""Every example row of docs/data.md is read, as the form under which it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from training.data.records import Conversation, PlainText, PreferencePair
from training.data.rows import BadRow
from training.data.sources import read_source
from training.keys.data import DataSource

PAGE = Path(__file__).parents[3] / "docs" / "data.md"
RECORDS = {"preference": PreferencePair, "text": PlainText}
BLOCKS = [
    (section.split("\n", 1)[0].strip(), block)
    for section in PAGE.read_text(encoding="utf-8").split("\n### ")[1:]
    for block in re.findall(r"```json rows\n(.*?)```", section, re.DOTALL)
]


def test_every_form_has_an_example() -> None:
    assert {form for form, _ in BLOCKS} == {
        *("alpaca", "sharegpt", "openai", "preference", "kto", "text")
    }


@pytest.mark.parametrize(("form", "block"), BLOCKS)
def test_examples_are_read_with_the_form_said_and_without(
    tmp_path: Path, form: str, block: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(block, encoding="utf-8")
    for given in (form, "auto"):
        records = list(
            read_source(DataSource.model_validate({"path": str(path), "form": given}), 0)
        )
        assert len(records) == len(block.splitlines())
        for record in records:
            assert not isinstance(record, BadRow), record
            assert isinstance(record, RECORDS.get(form, Conversation))
            if isinstance(record, Conversation):
                assert (record.is_desirable is not None) == (form == "kto")
