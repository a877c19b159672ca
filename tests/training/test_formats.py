"""Rows to conversations in the three forms, and the reason of every refusal."""

from __future__ import annotations

from typing import Any

import pytest

from training.data.formats import Conversation, read_conversations
from training.data.rows import BadRow, Row


def read(*values: Any) -> tuple[list[Conversation], list[BadRow]]:
    return read_conversations(Row("f", line, value) for line, value in enumerate(values, 1))


def messages(value: Any) -> list[dict[str, Any]]:
    conversations, bad = read(value)
    assert not bad
    return conversations[0].messages


ALPACA = {"instruction": "Q", "input": "more", "output": "A"}
SHAREGPT = {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}
OPENAI = {
    "messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}],
}
QA = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]


def test_the_three_forms_say_the_same_thing() -> None:
    assert messages(ALPACA | {"input": ""}) == messages(SHAREGPT) == messages(OPENAI) == QA


def test_alpaca_joins_input_and_puts_system_and_history_first() -> None:
    row = ALPACA | {"system": "S", "history": [["h", "a"]]}
    assert [(m["role"], m["content"]) for m in messages(row)] == [
        ("system", "S"),
        ("user", "h"),
        ("assistant", "a"),
        ("user", "Q\nmore"),
        ("assistant", "A"),
    ]


def test_sharegpt_calls_become_tool_calls_and_tools_may_be_json_text() -> None:
    turns = [
        {"from": "human", "value": "Q"},
        {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
        {"from": "observation", "value": "1"},
        {"from": "gpt", "value": "A"},
    ]
    conversations, bad = read({"conversations": turns, "tools": '[{"name": "f"}]'})
    assert not bad
    assert conversations[0].tools == [{"type": "function", "function": {"name": "f"}}]
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    assert conversations[0].messages[1]["tool_calls"] == [call]
    assert conversations[0].messages[2] == {"role": "tool", "content": "1"}


def openai(**last: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", **last}]}


def sharegpt(*turns: Any) -> dict[str, Any]:
    return {"conversations": list(turns)}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([1], "must be an object, not a list"),
        ({"text": "t"}, "no known form"),
        (ALPACA | OPENAI, "more than one form"),
        ({"conversations": [], "chosen": {}, "rejected": {}}, "preference pair"),
        ({"instruction": "Q"}, "'output' is missing"),
        (ALPACA | {"output": " "}, "'output' is empty"),
        (ALPACA | {"output": 7}, "'output' must be text, not a number"),
        (ALPACA | {"instruction": "", "input": None}, "both empty"),
        (ALPACA | {"history": [["only"]]}, "pairs"),
        (ALPACA | {"history": "x"}, "must be a list"),
        (sharegpt(), "'conversations' is empty"),
        (sharegpt("x"), "turn 1 must be an object"),
        (sharegpt({"from": "narrator", "value": "x"}), "'narrator'"),
        (sharegpt({"from": "human", "value": None}), "'value' of turn 1 must be text"),
        (sharegpt({"from": "human", "value": "Q"}), "ends with 'user'"),
        (sharegpt({"from": "gpt", "value": "A"}), "no user message"),
        (sharegpt({"from": "function_call", "value": "f(x)"}), "not valid JSON"),
        (sharegpt({"from": "function_call", "value": "{}"}), "no 'name'"),
        (SHAREGPT | {"tools": "[{"}, "'tools' is not valid JSON"),
        ({"messages": []}, "'messages' is empty"),
        (openai(), "neither 'content' nor 'tool_calls'"),
        (openai(content="A", weight=0), "weight 0"),
        (openai(content="A", function_call={}), "'function_call'"),
        (OPENAI | {"functions": []}, "write 'tools'"),
    ],
)
def test_a_row_that_cannot_be_used_says_why(value: Any, reason: str) -> None:
    conversations, bad = read(value)
    assert not conversations
    assert reason in bad[0].reason


def test_a_file_keeps_the_form_of_its_first_row() -> None:
    conversations, bad = read({"text": "?"}, ALPACA, OPENAI, ALPACA)
    assert [c.line for c in conversations] == [2, 4]
    assert bad[1] == BadRow("f", 3, "a row in openai form in a file of alpaca form")
