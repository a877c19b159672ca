"""Rows to records in every form, and the reason of every refusal."""

from __future__ import annotations

import json
from typing import Any

import pytest

from artifacts.errors import InvalidData, InvalidInput
from training.data.forms.layout import Layout, make_layout
from training.data.forms.read import RecordReader
from training.data.records import Conversation, PlainText, PreferencePair, Record
from training.data.rows import BadRow, Row

ALPACA = {"instruction": "Q", "input": "more", "output": "A"}
SHAREGPT = {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}
OPENAI = {
    "messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}],
}
USER = {"role": "user", "content": "Q"}
GOOD, POOR = {"role": "assistant", "content": "A"}, {"role": "assistant", "content": "B"}
QA = [USER, GOOD]


def read(*values: Any, layout: Layout | None = None) -> tuple[list[Record], list[BadRow]]:
    rows = [Row("f", line, value) for line, value in enumerate(values, 1)]
    every = list(RecordReader(layout or Layout()).read(rows))
    records = [each for each in every if not isinstance(each, BadRow)]
    return records, [each for each in every if isinstance(each, BadRow)]


def one(value: Any, **keys: Any) -> Record:
    layout = make_layout(keys.pop("form", "auto"), keys.pop("columns", {}), keys.pop("tags", {}))
    assert not keys
    records, bad = read(value, layout=layout)
    assert not bad
    return records[0]


def conversation(value: Any, **keys: Any) -> Conversation:
    record = one(value, **keys)
    assert isinstance(record, Conversation)
    return record


def pair(value: Any, **keys: Any) -> PreferencePair:
    record = one(value, **keys)
    assert isinstance(record, PreferencePair)
    return record


def openai(**last: Any) -> dict[str, Any]:
    return {"messages": [USER, {"role": "assistant", **last}]}


def sharegpt(*turns: Any) -> dict[str, Any]:
    return {"conversations": list(turns)}


def said(*turns: tuple[str, str]) -> dict[str, Any]:
    return sharegpt(*({"from": sender, "value": value} for sender, value in turns))


# --- what is read ---


def test_the_three_forms_say_the_same_thing() -> None:
    for value in (ALPACA | {"input": ""}, SHAREGPT, OPENAI):
        assert conversation(value).messages == QA


def test_alpaca_joins_input_and_puts_system_and_history_first() -> None:
    row = ALPACA | {"system": "S", "history": [["h", "a"]]}
    expected = [
        ("system", "S"),
        ("user", "h"),
        ("assistant", "a"),
        ("user", "Q\nmore"),
        ("assistant", "A"),
    ]
    assert [(m["role"], m["content"]) for m in conversation(row).messages] == expected
    from_csv = row | {"history": '[["h", "a"]]'}
    assert conversation(from_csv).messages == conversation(row).messages


def test_sharegpt_calls_become_tool_calls_and_tools_may_be_json_text() -> None:
    turns = said(
        ("human", "Q"),
        ("function_call", '{"name": "f", "arguments": {"x": 1}}'),
        ("observation", "1"),
        ("gpt", "A"),
    )
    record = conversation(turns | {"tools": '[{"name": "f"}]'})
    assert record.tools == [{"type": "function", "function": {"name": "f"}}]
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    assert record.messages[1]["tool_calls"] == [call]
    assert record.messages[2] == {"role": "tool", "content": "1"}


def test_sharegpt_with_names_of_its_own() -> None:
    tags = {"role_tag": "who", "content_tag": "what", "user_tag": "U", "assistant_tag": "B",
            "observation_tag": "O", "function_tag": "F", "system_tag": "S"}  # fmt: skip
    words = [("S", "sys"), ("U", "Q"), ("F", '{"name": "f"}'), ("O", "1"), ("B", "A")]
    row = {"turns": [{"who": who, "what": what} for who, what in words]}
    record = conversation(row, columns={"messages": "turns"}, tags=tags)
    roles = [m["role"] for m in record.messages]
    assert roles == ["system", "user", "assistant", "tool", "assistant"]


def test_messages_under_another_name_are_known_by_their_turns() -> None:
    columns = {"messages": "chat"}
    assert conversation({"chat": OPENAI["messages"]}, columns=columns).messages == QA
    assert conversation({"chat": SHAREGPT["conversations"]}, columns=columns).messages == QA
    as_text = json.dumps(OPENAI["messages"])
    assert conversation({"chat": as_text}, columns=columns).messages == QA


def test_openai_messages_keep_their_weights_and_nulls_count_as_absent() -> None:
    messages = [USER, POOR | {"weight": 0}, USER, GOOD | {"weight": 1, "tool_calls": None}]
    read_back = conversation({"messages": messages}).messages
    assert [m.get("weight") for m in read_back] == [None, 0, None, 1]
    assert "tool_calls" not in read_back[3]


def test_preference_pairs_in_all_four_forms() -> None:
    openai_form = {
        "input": {"messages": [USER]},
        "preferred_output": [GOOD],
        "non_preferred_output": [POOR],
    }
    turn = {"from": "gpt", "value": "A"}, {"from": "gpt", "value": "B"}
    forms: list[dict[str, Any]] = [
        {"instruction": "Q", "chosen": "A", "rejected": "B"},
        said(("human", "Q")) | {"chosen": turn[0], "rejected": turn[1]},
        {"messages": [USER], "chosen": GOOD, "rejected": POOR},
        openai_form,
    ]
    for value in forms:
        for form in ("auto", "preference"):
            found = pair(value, form=form)
            assert (found.messages, found.chosen, found.rejected) == ([USER], [GOOD], [POOR])
    tools = {"tools": [{"type": "function", "function": {"name": "f"}}]}
    with_tools = openai_form | {"input": {"messages": [USER], **tools}}
    assert pair(with_tools).tools == tools["tools"]


def test_kto_rows_keep_their_label() -> None:
    columns = {"prompt": "q", "response": "a", "kto_tag": "label"}
    for value, expected in ((True, True), (False, False), ("false", False)):
        row = {"q": "Q", "a": "A", "label": value}
        assert conversation(row, columns=columns).is_desirable is expected
    assert conversation(SHAREGPT | {"kto_tag": False}).is_desirable is False
    assert conversation(OPENAI | {"kto_tag": True}, form="kto").is_desirable is True
    assert conversation(OPENAI).is_desirable is None


def test_plain_text_and_the_plain_values_of_a_row() -> None:
    row = {"text": "T", "page": 3, "tags": ["x"], "seen": None}
    record = one(row)
    assert isinstance(record, PlainText)
    assert (record.text, record.fields) == ("T", {"text": "T", "page": 3, "seen": None})
    assert one({"body": "T"}, columns={"prompt": "body"}) == PlainText("T", "f", 1, {"body": "T"})
    assert isinstance(one(row, form="text"), PlainText)


def test_banking_columns() -> None:
    columns = {"prompt": "text", "response": "category"}
    record = conversation({"text": "Q", "category": "A"}, columns=columns)
    assert record.messages == QA
    assert record.fields == {"text": "Q", "category": "A"}


# --- what is refused ---


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([1], "must be an object, not a list"),
        ({"prompt": "t"}, "no known form: expected messages, conversations"),
        ({"prompt": "t"}, "(prompt)"),
        (ALPACA | OPENAI, "more than one form"),
        ({"instruction": "Q"}, "'output' is missing; the row has instruction"),
        (ALPACA | {"output": " "}, "'output' is empty"),
        (ALPACA | {"output": 7}, "'output' must be text, not a number"),
        (ALPACA | {"instruction": "", "input": None}, "both empty"),
        (ALPACA | {"history": [["only"]]}, "pairs"),
        (ALPACA | {"history": "x"}, "must be a list"),
        (sharegpt(), "'conversations' is empty"),
        (sharegpt("x"), "turn 1 must be an object"),
        (said(("narrator", "x")), "'narrator'"),
        (sharegpt({"from": "human", "value": None}), "'value' of turn 1 must be text"),
        (said(("human", "Q")), "ends with 'user'"),
        (said(("gpt", "A")), "turn 1 is from 'gpt', expected human or observation"),
        (said(("human", "Q"), ("human", "Q")), "turn 2 is from 'human', expected gpt or function"),
        (said(("system", "S"), ("gpt", "A")), "turn 2 is from 'gpt', expected human"),
        (said(("human", "Q"), ("gpt", "A"), ("system", "S")), "turn 3 is from 'system'"),
        (said(("system", "S"), ("human", "Q")) | {"system": "S"}, "a system turn beside"),
        (said(("human", "Q"), ("function_call", "f(x)")), "not valid JSON"),
        (said(("human", "Q"), ("function_call", "{}")), "no 'name'"),
        (said(("observation", "Q"), ("gpt", "A")), "no user message"),
        (SHAREGPT | {"tools": "[{"}, "'tools' is not valid JSON"),
        ({"messages": []}, "'messages' is empty"),
        (openai(), "neither 'content' nor 'tool_calls'"),
        (openai(content="A", weight=0.5), "weight 0.5; it is 0"),
        (openai(content="A", weight=True), "weight True; it is 0"),
        (openai(content="A", weight=0), "every assistant message has weight 0"),
        ({"messages": [USER | {"weight": 1}, GOOD]}, "only assistant messages are learned"),
        (openai(content="A", function_call={}), "'function_call'"),
        (OPENAI | {"functions": []}, "write 'tools'"),
        ({"instruction": "Q", "chosen": "A"}, "'rejected' is missing"),
        ({"instruction": "Q", "chosen": "A", "rejected": "A"}, "are the same"),
        ({"instruction": "Q", "chosen": "A", "rejected": " "}, "'rejected' is empty"),
        (SHAREGPT | {"chosen": GOOD, "rejected": POOR}, "prompt ends with 'assistant'"),
        ({"messages": [USER], "chosen": USER, "rejected": POOR}, "is from 'user', not the ass"),
        ({"preferred_output": [GOOD], "non_preferred_output": [POOR]}, "'input' is missing"),
        ({"input": 3, "preferred_output": [GOOD], "non_preferred_output": [POOR]}, "'input' must"),
        (ALPACA | {"kto_tag": 1}, "'kto_tag' must be true or false, not 1"),
        ({"text": "x", "chosen": "y"}, "a text has no reply to prefer"),
        ({"text": " "}, "'text' is empty"),
    ],
)
def test_a_row_that_cannot_be_used_says_why(value: Any, reason: str) -> None:
    records, bad = read(value)
    assert not records
    assert reason in bad[0].reason


def test_a_file_keeps_the_form_of_its_first_row() -> None:
    pair_of_texts = {"instruction": "Q", "chosen": "A", "rejected": "B"}
    records, bad = read({"q": "?"}, ALPACA, OPENAI, pair_of_texts, ALPACA)
    assert [record.line for record in records] == [2, 5]
    assert bad[1:] == [
        BadRow("f", 3, "a row in openai form in a file of alpaca form"),
        BadRow("f", 4, "a row in alpaca preference form in a file of alpaca form"),
    ]


def test_a_form_that_is_said_is_not_guessed() -> None:
    records, bad = read(OPENAI, ALPACA, layout=make_layout("alpaca", {}, {}))
    assert [record.line for record in records] == [2]
    assert bad[0].reason == "'instruction' is missing; the row has messages"


@pytest.mark.parametrize(
    ("form", "columns", "tags", "message"),
    [
        ("auto", {"promt": "q"}, {}, "unknown name 'promt'; did you mean 'prompt'"),
        ("auto", {"images": "i"}, {}, "bases here read text only"),
        ("auto", {"prompt": "q", "query": "x"}, {}, "names no 'response'"),
        ("auto", {"response": "a"}, {}, "names no 'prompt'"),
        ("sharegpt", {"system": "s"}, {}, "names no 'messages'"),
        ("auto", {"prompt": "q", "chosen": "c"}, {}, "names no 'rejected'"),
        ("kto", {"prompt": "q", "response": "a"}, {}, "names no 'kto_tag'"),
        ("alpaca", {}, {"user_tag": "U"}, "tags belong to ShareGPT rows"),
        ("auto", {}, {"usertag": "U"}, "did you mean 'user_tag'"),
    ],
)
def test_columns_and_tags_that_do_not_fit_are_refused(
    form: str, columns: dict[str, str], tags: dict[str, str], message: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        make_layout(form, columns, tags)
    assert message in str(caught.value)


def test_columns_that_the_form_never_reads_are_refused() -> None:
    layout = make_layout("auto", {"messages": "messages", "history": "h"}, {})
    with pytest.raises(InvalidData, match="history: not read from openai rows"):
        read(OPENAI | {"h": []}, layout=layout)


def test_a_named_column_that_stands_in_no_row_is_refused() -> None:
    layout = make_layout("auto", {"prompt": "text", "query": "inptu", "response": "label"}, {})
    rows: list[dict[str, object]] = [
        {"text": "Q", "label": "A", "input": "x"},
        {"text": "Q", "label": "B", "more": 1},
    ]
    with pytest.raises(InvalidData, match="'inptu', which stands in no row; the rows have input"):
        read(*rows, layout=layout)
    assert not read(rows[0], rows[1] | {"inptu": "x"}, layout=layout)[1]


def test_a_wrong_column_names_what_is_there() -> None:
    layout = make_layout("auto", {"prompt": "question", "response": "label"}, {})
    rows = [Row("f", 1, {"text": "Q", "label": "A"})]
    with pytest.raises(InvalidData, match="'question', which stands in no row"):
        list(RecordReader(layout).read(rows))


def test_what_columns_leave_out_is_noted() -> None:
    reader = RecordReader(make_layout("auto", {"prompt": "instruction", "response": "output"}, {}))
    list(reader.read([Row("f", 1, ALPACA | {"system": "S", "id": 3})]))
    assert reader.notes == [
        "column 'input' is not read: columns does not name it",
        "column 'system' is not read: columns does not name it",
    ]
