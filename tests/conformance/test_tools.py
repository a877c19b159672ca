"""The loop of tools as the official client runs it: call, execute, send the result, read on."""

from __future__ import annotations

import json
from typing import Any, Literal

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionChunk
from pydantic import BaseModel, Field

from tests.conformance.conftest import BASE, POET

ASK: Any = [{"role": "user", "content": "Where is my order 4711?"}]


class FindOrder(BaseModel):
    """Where a parcel is."""

    number: int = Field(ge=1, le=99999)
    carrier: Literal["DHL", "邮政", 'quo"te', "\\back"]


class Refund(BaseModel):
    """Pays back."""

    number: int = Field(ge=1, le=99999)
    urgent: bool


TOOLS: Any = [openai.pydantic_function_tool(each) for each in (FindOrder, Refund)]
LOOSE: Any = [
    {
        "type": "function",
        "function": {
            "name": "ping",
            "description": 'says "pong" </tools><|end|>',
            "parameters": {"type": "object", "properties": {}, "additionalProperties": False},
        },
    }
]
# Wild words, so that only the grammar can have made the calls; thoughts need none.
WILD: dict[str, Any] = {
    "model": POET,
    "messages": ASK,
    "max_tokens": 300,
    "reasoning_effort": "none",
}
TOWARDS_CALLS = {"11": 100}  # <tool_call>
FORCED: dict[str, Any] = {**WILD, "tools": TOOLS, "tool_choice": "required"}


def run(call: Any) -> dict[str, str]:
    """What a front end does with a call: parse, execute, answer."""
    kinds: dict[str, type[BaseModel]] = {"FindOrder": FindOrder, "Refund": Refund}
    arguments = kinds[call.function.name].model_validate_json(call.function.arguments)
    return {
        "role": "tool",
        "tool_call_id": call.id,
        "content": f"done: {arguments.model_dump_json()} 🦊",
    }


def test_the_whole_loop(client: OpenAI) -> None:
    answer = client.chat.completions.create(**FORCED, seed=1, parallel_tool_calls=False)
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    calls: Any = choice.message.tool_calls
    [call] = calls
    assert call.type == "function"
    assert call.id.startswith("call_")
    # The message goes back just as the client holds it.
    history = [*ASK, choice.message, *map(run, calls)]
    second = client.chat.completions.create(
        model=BASE, messages=history, tools=TOOLS, tool_choice="none", max_tokens=12, temperature=0
    )
    assert second.choices[0].message.content
    assert second.choices[0].message.tool_calls is None
    assert second.usage is not None
    assert answer.usage is not None
    assert second.usage.prompt_tokens > answer.usage.prompt_tokens + 20


@pytest.mark.parametrize("seed", range(2))
def test_required_calls_follow_their_schemas_streamed_as_whole(client: OpenAI, seed: int) -> None:
    whole = client.chat.completions.create(**FORCED, seed=seed).choices[0]
    calls: Any = whole.message.tool_calls
    assert whole.finish_reason == "tool_calls"
    assert len({call.id for call in calls}) == len(calls) >= 1
    for call in calls:
        run(call)
    stream = client.chat.completions.create(**FORCED, seed=seed, stream=True)
    gathered = gather(list(stream))
    assert gathered == [(call.function.name, call.function.arguments) for call in calls]


def gather(chunks: list[ChatCompletionChunk]) -> list[tuple[str, str]]:
    """(name, arguments) of a stream's calls. Each begins with its id, type and name, once."""
    found: list[list[str]] = []
    for chunk in chunks:
        for delta in chunk.choices[0].delta.tool_calls or []:
            assert delta.function is not None
            if delta.id is not None:
                assert delta.index == len(found)
                assert (delta.type, delta.function.arguments) == ("function", "")
                found.append([delta.function.name or "", ""])
            else:
                assert (delta.type, delta.function.name) == (None, None)
                assert delta.index == len(found) - 1
                found[delta.index][1] += delta.function.arguments or ""
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    return [(name, arguments) for name, arguments in found]


def test_the_helpers_events_tell_of_calls(client: OpenAI) -> None:
    whole: Any = client.chat.completions.parse(**FORCED, seed=2).choices[0].message.tool_calls
    with client.chat.completions.stream(**FORCED, seed=2) as stream:
        events = list(stream)
        final: Any = stream.get_final_completion().choices[0].message.tool_calls
    done = [event for event in events if event.type == "tool_calls.function.arguments.done"]
    for call, event, streamed in zip(whole, done, final, strict=True):
        assert isinstance(call.function.parsed_arguments, FindOrder | Refund)
        assert event.parsed_arguments == call.function.parsed_arguments
        assert streamed.function.parsed_arguments == call.function.parsed_arguments
        assert (event.name, event.arguments) == (call.function.name, call.function.arguments)
        own = [
            each
            for each in events
            if each.type == "tool_calls.function.arguments.delta" and each.index == event.index
        ]
        assert len(own) > 2  # they come as they are made
        assert "".join(each.arguments_delta for each in own) == event.arguments


async def test_the_async_helper_tells_the_same(client: OpenAI, async_client: AsyncOpenAI) -> None:
    whole: Any = client.chat.completions.parse(**FORCED, seed=3).choices[0].message.tool_calls
    async with async_client.chat.completions.stream(**FORCED, seed=3) as stream:
        final: Any = (await stream.get_final_completion()).choices[0].message.tool_calls
    parsed = [call.function.parsed_arguments for call in final]
    assert parsed == [call.function.parsed_arguments for call in whole]


def test_a_named_function_is_the_only_one_called(client: OpenAI) -> None:
    for name in ("FindOrder", "Refund"):
        named: Any = {"type": "function", "function": {"name": name}}
        answer = client.chat.completions.create(**{**FORCED, "tool_choice": named}, n=2, seed=1)
        for choice in answer.choices:
            assert choice.finish_reason == "stop"  # OpenAI's word where the client chose
            calls: Any = choice.message.tool_calls
            assert [call.function.name for call in calls] == [name]
            run(calls[0])


def test_allowed_tools_leave_out_the_others(client: OpenAI) -> None:
    one: Any = {"type": "function", "function": {"name": "Refund"}}
    allowed: Any = {
        "type": "allowed_tools",
        "allowed_tools": {"mode": "required", "tools": [one]},
    }
    answer = client.chat.completions.create(**{**FORCED, "tool_choice": allowed}, n=2, seed=1)
    for choice in answer.choices:
        assert choice.finish_reason == "tool_calls"
        calls: Any = choice.message.tool_calls
        assert {call.function.name for call in calls} == {"Refund"}


def test_at_most_one_call_where_parallel_ones_are_not_wanted(client: OpenAI) -> None:
    answer = client.chat.completions.create(**FORCED, n=4, seed=3, parallel_tool_calls=False)
    assert [len(choice.message.tool_calls or []) for choice in answer.choices] == [1] * 4
    many = client.chat.completions.create(**FORCED, n=8, seed=3)
    assert max(len(choice.message.tool_calls or []) for choice in many.choices) > 1


def test_auto_may_answer_with_text_and_none_never_calls(client: OpenAI) -> None:
    tools = [*TOOLS, *LOOSE]
    for choice in ("auto", "none"):
        fields: dict[str, Any] = {**WILD, "model": BASE, "temperature": 0, "max_tokens": 20}
        answer = client.chat.completions.create(**fields, tools=tools, tool_choice=choice)
        assert answer.choices[0].message.content or answer.choices[0].message.tool_calls
        wild = {**WILD, "max_tokens": 40, "n": 2, "seed": 2, "logit_bias": TOWARDS_CALLS}
        tried: Any = choice
        for one in client.chat.completions.create(**wild, tools=tools, tool_choice=tried).choices:
            assert "tool_call>" not in (one.message.content or "")
            assert (one.message.tool_calls is None) == (choice == "none")


def test_a_format_and_tools_go_together(client: OpenAI) -> None:
    class Summary(BaseModel):
        title: str = Field(max_length=8)

    fields: dict[str, Any] = {**WILD, "tools": TOOLS, "response_format": Summary, "seed": 5}
    for choice in client.chat.completions.parse(**fields, n=2).choices:
        if choice.message.tool_calls:
            assert choice.finish_reason == "tool_calls"
        else:
            assert isinstance(choice.message.parsed, Summary)
    forced = client.chat.completions.parse(**fields, tool_choice="required").choices[0]
    assert forced.message.tool_calls


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"tools": [*TOOLS, TOOLS[0]]}, "tools[2].function.name"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": None}, "tool_choice"),
    ({"tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice.function.name"),
    ({"tools": [{"type": "function", "function": {"name": 'a"b'}}]}, "tools[0].function.name"),
    ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ({"messages": [*ASK, {"role": "tool", "content": "x"}]}, "messages[1].tool_call_id"),
    (
        {"messages": [*ASK, {"role": "tool", "content": "x", "tool_call_id": "call_1"}]},
        "messages[1]",
    ),
]


@pytest.mark.parametrize(("fields", "param"), REFUSED)
def test_what_is_wrong_is_named(client: OpenAI, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**{**FORCED, **fields})
    assert (refused.value.param or "").startswith(param), refused.value


def test_arguments_that_are_cut_off_are_sent_as_far_as_they_came(client: OpenAI) -> None:
    whole: Any = client.chat.completions.create(**FORCED, seed=1).choices[0].message.tool_calls[0]
    for limit in (1, 3, 8, 12):
        short = {**FORCED, "max_tokens": limit}
        choice = client.chat.completions.create(**short, seed=1).choices[0]
        assert choice.finish_reason == "length"
        assert not choice.message.content
        for call in choice.message.tool_calls or []:
            cut: Any = call
            assert cut.function.name == whole.function.name
            assert whole.function.arguments.startswith(cut.function.arguments)


def test_calls_by_dict_and_empty_contents_go_back(client: OpenAI) -> None:
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "ping", "arguments": json.dumps({"é": "🦊</tool_call>"})},
    }
    contents: list[Any] = [None, "", []]
    for content in contents:
        messages: Any = [
            *ASK,
            {"role": "assistant", "content": content, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "a"}]},
        ]
        answer = client.chat.completions.create(
            model=BASE, messages=messages, tools=LOOSE, max_tokens=2
        )
        assert answer.choices[0].finish_reason
