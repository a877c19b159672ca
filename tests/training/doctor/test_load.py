"""Rows to parts: what goes, what stays together, and what does not depend on the order of files."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from artifacts.base import Base, open_base
from artifacts.chat import ChatRenderer
from artifacts.errors import InvalidData
from training.config import parse_config
from training.data.examples import Example
from training.data.load import TrainingData, load_data
from training.doctor.edits import Change, read_changes, texts_of, undo_changes, write_changes

WORDS = [f"w{i}" for i in range(300)]


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> Base:
    return open_base(tiny_base)


def sentence(seed: int, count: int = 8) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=count))


def rows(first: int, count: int, **fields: Any) -> list[dict[str, Any]]:
    return [
        {"instruction": f"Say {sentence(i, 3)}", "output": sentence(i), **fields}
        for i in range(first, first + count)
    ]


def write(path: Path, values: Sequence[dict[str, Any]]) -> str:
    path.write_text("\n".join(map(json.dumps, values)), encoding="utf-8")
    return str(path)


def load(base: Base, data: list[str], **keys: Any) -> TrainingData:
    config = parse_config({"name": "check", "data": data, **keys})
    return load_data(config, ChatRenderer(base.tokenizer), 256)


def texts(base: Base, examples: Sequence[Example]) -> set[str]:
    return {base.tokenizer.decode(list(example.input_ids)) for example in examples}


def parts(base: Base, data: TrainingData) -> list[set[str]]:
    split = data.split
    return [texts(base, part) for part in (split.train, split.validation, split.test)]


def near(first: int, count: int, copies: int) -> list[dict[str, Any]]:
    """Rows of 25 words, each followed by others that differ in a mark."""
    return [
        {"instruction": f"Say it{'!' * copy}", "output": sentence(i, 25)}
        for i in range(first, first + count)
        for copy in range(copies + 1)
    ]


def test_the_order_of_files_and_rows_changes_nothing(tmp_path: Path, base: Base) -> None:
    """Also which of several near duplicates stays."""
    values = [*rows(0, 40), *near(100, 10, 2), *rows(0, 3)]
    one = load(base, [write(tmp_path / "one.jsonl", values)])
    random.Random(0).shuffle(values)
    halves = [write(tmp_path / f"{n}.jsonl", values[n::2]) for n in (1, 0)]
    other = load(base, halves)
    assert parts(base, one) == parts(base, other)
    assert one.data_hash == other.data_hash
    assert (one.counts["num_duplicates"], one.counts["num_near_duplicates"]) == (3, 20)
    assert load(base, halves, seed=1).data_hash != one.data_hash


@pytest.mark.parametrize(
    ("mode", "num_left", "num_reported"), [("remove", 50, 20), ("report", 70, 20), ("off", 70, 0)]
)
def test_near_duplicates_are_removed_or_kept_in_one_part(
    tmp_path: Path, base: Base, mode: str, num_left: int, num_reported: int
) -> None:
    values = [*rows(0, 40), *near(100, 10, 2)]
    data = load(base, [write(tmp_path / "d.jsonl", values)], near_duplicates=mode)
    split = parts(base, data)
    assert sum(map(len, split)) == num_left
    assert data.counts["num_near_duplicates"] == num_reported
    homes = [
        {n for n, part in enumerate(split) for text in part if sentence(i, 25) in text}
        for i in range(100, 110)
    ]
    if mode == "off":  # the same draw, without the tie: some row is in two parts
        assert max(map(len, homes)) > 1
    else:
        assert all(len(home) == 1 for home in homes)


def test_rows_of_one_group_stay_in_one_part(tmp_path: Path, base: Base) -> None:
    values = [row for user in range(20) for row in rows(10 * user, 3, user=user)]
    data = load(base, [write(tmp_path / "d.jsonl", values)], group_by="user")
    homes: dict[int, set[int]] = {}
    for number, part in enumerate(parts(base, data)):
        for text in part:
            (user,) = [v["user"] for v in values if v["output"] in text]
            homes.setdefault(user, set()).add(number)
    assert all(len(home) == 1 for home in homes.values())
    assert {number for home in homes.values() for number in home} == {0, 1, 2}


def test_each_part_has_every_class_in_its_share(tmp_path: Path, base: Base) -> None:
    values = [*rows(0, 60, label="a"), *rows(60, 30, label="b"), *rows(90, 10, label="c")]
    data = load(base, [write(tmp_path / "d.jsonl", values)], stratify_by="label")
    label = {value["output"]: value["label"] for value in values}
    for part, wanted in zip(
        parts(base, data), ({"a": 48, "b": 24, "c": 8}, *[{"a": 6, "b": 3, "c": 1}] * 2),
        strict=True,
    ):  # fmt: skip
        found = [label[output] for text in part for output in label if output in text]
        assert {name: found.count(name) for name in "abc"} == wanted
    assert data.report.data.classes is not None
    assert data.report.data.classes["rows"] == {"a": 60, "b": 30, "c": 10}


def test_a_row_without_the_column_that_parts_it_is_bad(tmp_path: Path, base: Base) -> None:
    file = write(tmp_path / "d.jsonl", [*rows(0, 9, user=1), *rows(9, 1)])
    with pytest.raises(InvalidData, match=r"d\.jsonl:10: no plain value 'user', which group_by"):
        load(base, [file], group_by="user")


def test_given_evaluation_rows_replace_their_parts_and_lose_none(
    tmp_path: Path, base: Base
) -> None:
    """What also stands there, exactly or nearly, goes from the training data."""
    test = [*rows(500, 6), *near(100, 1, 1)]  # the last two are alike
    validation = [*rows(600, 5), test[0]]
    train = [*rows(0, 30), *near(100, 1, 2), validation[1], test[1]]
    data = load(
        base,
        [write(tmp_path / "train.jsonl", train)],
        validation_data=write(tmp_path / "validation.jsonl", validation),
        test_data=write(tmp_path / "test.jsonl", test),
    )
    split = data.split
    assert [len(part) for part in (split.train, split.validation, split.test)] == [30, 5, 8]
    assert data.report.parts == {"train": 30, "validation": 5, "test": 8}
    overlap = data.report.overlap
    assert [
        (overlap[k]["exact"], overlap[k]["near"]) for k in ("test_data", "validation_data")
    ] == [
        (3, 1),
        (1, 0),
    ]
    assert not set.intersection(*parts(base, data)[:2])


def test_only_a_test_set_leaves_the_rest_to_train_and_validation(
    tmp_path: Path, base: Base
) -> None:
    test_data = write(tmp_path / "test.jsonl", rows(500, 6))
    data = load(base, [write(tmp_path / "train.jsonl", rows(0, 40))], test_data=test_data)
    assert data.report.parts == {"train": 36, "validation": 4, "test": 6}


def test_a_test_set_of_training_rows_only_leaves_nothing(tmp_path: Path, base: Base) -> None:
    file = write(tmp_path / "d.jsonl", rows(0, 9))
    with pytest.raises(InvalidData, match="every training row also stands in"):
        load(base, [file], test_data=file)


def test_every_broken_file_is_told_at_once(tmp_path: Path, base: Base) -> None:
    empty, array = tmp_path / "empty.jsonl", tmp_path / "array.json"
    empty.write_text("")
    array.write_text('[\n{"instruction": "Q", "output": "A"},\n{"instruc', encoding="utf-8")
    good = write(tmp_path / "good.jsonl", rows(0, 9))
    with pytest.raises(InvalidData) as caught:
        load(base, [str(empty), good, str(array), str(tmp_path / "absent.jsonl")])
    for said in ("empty.jsonl is empty", "array.json:3: not valid JSON", "absent.jsonl"):
        assert said in str(caught.value)
    assert (str(array), 3) in [(file, line) for file, line, _ in caught.value.rows]


def test_preference_pairs_and_texts_have_duplicates_too(tmp_path: Path, base: Base) -> None:
    pairs = [
        {"instruction": f"Say{'!' * copy}", "chosen": sentence(i, 14), "rejected": sentence(-i, 12)}
        for i in range(1, 21)
        for copy in (0, 0, 1)
    ]
    data = load(base, [write(tmp_path / "p.jsonl", pairs)], objective="dpo")
    assert (data.counts["num_duplicates"], data.counts["num_near_duplicates"]) == (20, 20)
    texts_ = [{"text": sentence(i, 25) + mark} for i in range(20) for mark in ("", "", ".")]
    data = load(base, [write(tmp_path / "t.jsonl", texts_)])
    assert (data.counts["num_duplicates"], data.counts["num_near_duplicates"]) == (20, 20)


# --- changes and the way back ---

UNCLEAN = [
    {
        "instruction": f"<b>Say</b> {sentence(i, 3)}",
        "output": f"１{i}  {sentence(i)} a@b.example.com",
    }
    for i in range(10)
]


def test_what_was_cleaned_can_be_had_back(tmp_path: Path, base: Base) -> None:
    """Rows in one line of a JSON array, too: they are told apart by their number."""
    from training.data.load import examine

    file = tmp_path / "d.json"
    file.write_text(json.dumps(UNCLEAN), encoding="utf-8")
    renderer = ChatRenderer(base.tokenizer)
    keys = {"name": "check", "data": str(file)}
    plain = examine(parse_config(keys), renderer, 256)
    cleaned = examine(parse_config({**keys, "clean": True}), renderer, 256)
    assert not any("<b>" in text for row in cleaned.data.rows for _, text in texts_of(row.record))
    write_changes(cleaned.data.changes, tmp_path / "changes.jsonl")
    changes = read_changes(tmp_path / "changes.jsonl")
    assert changes == cleaned.data.changes
    after = {row.number: row.record for row in cleaned.data.rows}
    assert undo_changes(after, changes) == {row.number: row.record for row in plain.data.rows}
    with pytest.raises(InvalidData, match="belong to other rows"):
        undo_changes({row.number: row.record for row in plain.data.rows}, changes)


def test_redacted_data_is_kept_nowhere(tmp_path: Path, base: Base) -> None:
    """Cleaning is undone up to the placeholders; the notes do not hold the addresses either."""
    file = write(tmp_path / "d.jsonl", UNCLEAN)
    data = load(base, [file], clean=True, redact_personal_data=True)
    everything = json.dumps(data.report.as_dict()) + "".join(map(repr, data.changes))
    assert "example.com" not in everything
    assert all("[EMAIL]" in text for part in parts(base, data) for text in part)
    first = [change for change in data.changes if change.row == 1]
    assert [change.rule for change in first] == ["html", "personal", "nfkc", "whitespace"]
    assert [change.before for change in first if change.rule == "personal"] == [None]


def test_a_row_of_which_cleaning_leaves_nothing_is_bad(tmp_path: Path, base: Base) -> None:
    values = [*rows(0, 9), {"instruction": "Q", "output": "<br><!-- A -->"}]
    with pytest.raises(
        InvalidData, match=r"d\.jsonl:10: messages\[1\]\.content is empty after html"
    ):
        load(base, [write(tmp_path / "d.jsonl", values)], clean=["html"])


def test_what_a_tool_said_is_not_tidied_but_redacted(tmp_path: Path, base: Base) -> None:
    from training.data.records import Conversation
    from training.doctor.cleaning import RULES
    from training.doctor.edits import Treatment

    function = {"name": "f", "arguments": {"name": "a@b.example.com"}}
    call = {"type": "function", "id": "13800138000", "function": function}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "<b>Q</b>"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "<b>13800138000</b>"},
        {"role": "assistant", "content": "A"},
    ]
    record = Conversation(messages, None, "f", 1)
    treated, changes = Treatment(tuple(RULES), redacts=True).apply(record, 1)
    assert isinstance(treated, Conversation)
    assert [message["content"] for message in treated.messages] == ["Q", "", "<b>[PHONE]</b>", "A"]
    (redacted,) = treated.messages[1]["tool_calls"]
    assert redacted["function"]["arguments"] == {"name": "[EMAIL]"}
    assert redacted["id"] == "13800138000"  # what the result refers to
    assert messages[0]["content"] == "<b>Q</b>"  # the record itself is as it was
    assert Change(1, "f", 1, "messages[0].content", "html", "<b>Q</b>", "Q") in changes


@pytest.mark.parametrize(
    "calls", ["f()", [1], [{}], [{"function": 1}], [{"function": {"name": "f"}}]]
)
def test_calls_of_another_form_are_bad_rows_and_no_crash(
    tmp_path: Path, base: Base, calls: Any
) -> None:
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "tool_calls": calls}]
    file = write(tmp_path / "d.jsonl", [{"messages": turns}])
    with pytest.raises(InvalidData):
        load(base, [file], clean=True, redact_personal_data=True)


@pytest.mark.parametrize(
    "content", [5, {"a": 1}, [1], [{"type": "text"}], [{"type": "text", "text": 3}]]
)
def test_contents_of_another_form_are_bad_rows_and_no_crash(
    tmp_path: Path, base: Base, content: Any
) -> None:
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": "A"}]
    file = write(tmp_path / "d.jsonl", [{"messages": turns}])
    with pytest.raises(InvalidData):
        load(base, [file], clean=True, redact_personal_data=True)
