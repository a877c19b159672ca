"""From files to examples: masks, lengths, totals and the list of what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from artifacts.base import Base, open_base
from artifacts.chat import ChatRenderer
from artifacts.errors import InvalidData
from tests.training.conftest import rows
from training.config import parse_config
from training.data.examples import IGNORED
from training.data.load import TrainingData, load_data


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> Base:
    return open_base(tiny_base)


def load(folder: Path, base: Base, values: list[Any], **keys: Any) -> TrainingData:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, values)), encoding="utf-8")
    return load_files(base, [path], **keys)


def load_files(base: Base, paths: list[Path], max_length: int = 256, **keys: Any) -> TrainingData:
    config = parse_config({"name": "check", "data": [str(path) for path in paths], **keys})
    return load_data(config, ChatRenderer(base.tokenizer), max_length)


def test_the_loss_falls_on_replies_and_what_ends_them_only(tmp_path: Path, base: Base) -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi <|end|>"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Bye"},
        {"role": "assistant", "content": "See you."},
    ]
    data = load(tmp_path, base, [{"messages": turns}, *_other_chats()])
    every = [*data.split.train, *data.split.validation, *data.split.test]
    texts = [
        base.tokenizer.decode([label for label in example.labels if label != IGNORED])
        for example in every
    ]
    assert "Hello.<|end|>See you.<|end|>" in texts


def _other_chats() -> list[dict[str, Any]]:
    return [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": q}]}
        for q in ("one", "two")
    ]


def test_duplicates_go_before_the_split_whatever_form_they_have(tmp_path: Path, base: Base) -> None:
    alpaca, sharegpt = tmp_path / "a.json", tmp_path / "s.json"
    alpaca.write_text(json.dumps(rows(30)), encoding="utf-8")
    same = [
        [{"from": "human", "value": r["instruction"]}, {"from": "gpt", "value": r["output"]}]
        for r in rows(30)
    ]
    sharegpt.write_text(json.dumps([{"conversations": c} for c in same]), encoding="utf-8")
    data = load_files(base, [alpaca, sharegpt])
    assert (data.counts["num_rows"], data.counts["num_duplicates"]) == (60, 30)
    assert len(data.split.train) == 24


def test_long_rows_lose_their_tail_or_are_left_out_and_are_counted(
    tmp_path: Path, base: Base
) -> None:
    long_reply = {"instruction": "Q", "output": "a" * 100}
    long_prompt = {"instruction": "q" * 100, "output": "A"}
    data = load(tmp_path, base, [*rows(5), long_reply, long_prompt], max_length=60)
    assert (data.counts["num_truncated"], data.counts["num_too_long"]) == (1, 1)
    parts = data.split
    every = [*parts.train, *parts.validation, *parts.test]
    assert len(every) == 6
    assert max(len(example.input_ids) for example in every) == 60


def test_bad_rows_are_listed_with_their_lines_and_stop_the_run(tmp_path: Path, base: Base) -> None:
    wrong = [{"instruction": "Q", "output": ""}, {"instruction": "Q", "output": "\ud800"}]
    values = [rows(1)[0], wrong[0], *rows(5), wrong[1]]
    with pytest.raises(InvalidData) as caught:
        load(tmp_path, base, values)
    file = str(tmp_path / "rows.jsonl")
    assert [(row[0], row[1]) for row in caught.value.rows] == [(file, 2), (file, 8)]
    assert "2 of 8 rows cannot be used (max_bad_rows=0):" in str(caught.value)
    assert f"{file}:2: 'output' is empty" in str(caught.value)
    assert load(tmp_path, base, values, max_bad_rows=2).counts["num_bad"] == 2


def test_only_the_first_twenty_bad_rows_are_listed(tmp_path: Path, base: Base) -> None:
    with pytest.raises(InvalidData, match="and 5 more") as caught:
        load(tmp_path, base, [{"instruction": "Q"}] * 25)
    assert len(caught.value.rows) == 20


def test_a_role_that_the_template_does_not_know_is_a_bad_row(tmp_path: Path, base: Base) -> None:
    turns = [
        {"role": "user", "content": "Q"},
        {"role": "critic", "content": "?"},
        {"role": "assistant", "content": "A"},
    ]
    with pytest.raises(InvalidData, match=r"rows\.jsonl:1: .*critic"):
        load(tmp_path, base, [{"messages": turns}])


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (rows(1), {}, "1 distinct usable row"),
        (rows(1) * 9, {}, "1 distinct usable row"),
        (rows(4), {"max_length": 5}, "in all 4 usable rows the reply starts after max_length=5"),
        ([1, 2], {"max_bad_rows": 5}, "none of 2 rows can be used"),
    ],
)
def test_too_little_to_train_on_is_said(
    tmp_path: Path, base: Base, values: list[Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidData, match=message):
        load(tmp_path, base, values, **options)
