"""The Responses API as the official client uses it: text, events, forms, tools, what is stored."""

from __future__ import annotations

from typing import Any, Literal

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.responses import Response
from pydantic import BaseModel, Field

from tests.conformance.conftest import BASE, POET

WILD: dict[str, Any] = {
    "model": POET,
    "input": "Where is my order 4711?",
    "reasoning": {"effort": "none"},
    "max_output_tokens": 12,
    "extra_body": {"seed": 5},
}
LONG: dict[str, Any] = {**WILD, "max_output_tokens": 300}


class FindOrder(BaseModel):
    """Where a parcel is."""

    number: int = Field(ge=1, le=99999)
    carrier: Literal["DHL", "邮政", 'quo"te']


class Verdict(BaseModel):
    state: Literal["sent", "lost", "在途"]
    days: int = Field(ge=0, le=30)


TOOLS: Any = [openai.pydantic_function_tool(FindOrder)["function"] | {"type": "function"}]


def test_a_response_has_every_field_of_openais_type(client: OpenAI) -> None:
    answer = client.responses.create(**WILD, metadata={"team": "前端"}, instructions="Be brief.")
    assert Response.model_validate(answer.to_dict()) == answer
    assert answer.object == "response"
    assert answer.id.startswith("resp_")
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.instructions == "Be brief."
    assert answer.metadata == {"team": "前端"}
    assert answer.max_output_tokens == 12
    assert answer.error is None
    assert answer.output_text
    usage = answer.usage
    assert usage is not None
    assert usage.output_tokens == 12
    assert usage.total_tokens == usage.input_tokens + 12


def test_events_say_what_the_whole_says(client: OpenAI) -> None:
    whole = client.responses.create(**WILD)
    events = list(client.responses.create(**WILD, stream=True))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-1] == "response.incomplete"  # by max_output_tokens
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == whole.output_text
    assert kinds.count("response.output_text.done") == 1
    last: Any = events[-1]
    assert last.response.output_text == whole.output_text
    assert whole.usage is not None
    assert last.response.usage.output_tokens == whole.usage.output_tokens
    assert last.response.usage.input_tokens == whole.usage.input_tokens
    first: Any = events[0]
    assert first.response.status == "in_progress"
    assert first.response.id == last.response.id != whole.id


def test_the_helper_parses_and_completes(client: OpenAI) -> None:
    parsed = client.responses.parse(**LONG, text_format=Verdict)
    assert isinstance(parsed.output_parsed, Verdict)
    with client.responses.stream(**LONG, text_format=Verdict) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert final.output_parsed == parsed.output_parsed
    [done] = [event for event in events if event.type == "response.output_text.done"]
    assert done.parsed == parsed.output_parsed
    assert final.status == "completed"


async def test_the_async_client_does_the_same(client: OpenAI, async_client: AsyncOpenAI) -> None:
    parsed = client.responses.parse(**LONG, text_format=Verdict)
    again = await async_client.responses.parse(**LONG, text_format=Verdict)
    async with async_client.responses.stream(**LONG, text_format=Verdict) as stream:
        final = await stream.get_final_response()
    assert parsed.output_parsed == again.output_parsed == final.output_parsed
    await async_client.responses.delete(again.id)
    with pytest.raises(openai.NotFoundError):
        await async_client.responses.retrieve(again.id)


@pytest.mark.parametrize("is_stored", [True, False])
def test_the_loop_of_tools(client: OpenAI, is_stored: bool) -> None:
    """With what the server keeps, and with everything sent back as it came."""
    forced: dict[str, Any] = {**LONG, "tools": TOOLS, "tool_choice": "required"}
    first = client.responses.create(**forced, store=is_stored)
    calls = [item for item in first.output if item.type == "function_call"]
    assert calls
    results: Any = [
        {
            "type": "function_call_output",
            "call_id": call.call_id,
            "output": FindOrder.model_validate_json(call.arguments).carrier,
        }
        for call in calls
    ]
    more: dict[str, Any] = {"model": BASE, "tools": TOOLS, "max_output_tokens": 8, "temperature": 0}
    if is_stored:
        last = client.responses.create(**more, previous_response_id=first.id, input=results)
        assert last.previous_response_id == first.id
    else:
        asked: Any = {"role": "user", "content": WILD["input"]}
        last = client.responses.create(**more, input=[asked, *first.output, *results])
    assert last.usage is not None
    assert first.usage is not None
    assert last.usage.input_tokens > first.usage.input_tokens + 10


def test_both_ways_of_going_on_read_the_same_prompt(client: OpenAI) -> None:
    first = client.responses.create(**LONG, tools=TOOLS, tool_choice="required")
    asked: Any = {"role": "user", "content": WILD["input"]}
    results: Any = [
        {"type": "function_call_output", "call_id": item.call_id, "output": "lost 🦊"}
        for item in first.output
        if item.type == "function_call"
    ]
    fields: dict[str, Any] = {**WILD, "model": BASE, "tools": TOOLS}
    one = client.responses.create(
        **{**fields, "input": results, "previous_response_id": first.id, "temperature": 0}
    )
    sent = [asked, *first.output, *results]
    two = client.responses.create(**{**fields, "input": sent, "temperature": 0})
    assert one.usage is not None
    assert two.usage is not None
    assert one.usage.input_tokens == two.usage.input_tokens
    assert one.output_text == two.output_text


def test_calls_stream_as_events(client: OpenAI) -> None:
    forced: dict[str, Any] = {**LONG, "tools": TOOLS, "tool_choice": "required"}
    whole = client.responses.parse(**forced)
    with client.responses.stream(**forced) as stream:
        events = list(stream)
        final = stream.get_final_response()
    calls = [item for item in whole.output if item.type == "function_call"]
    streamed = [item for item in final.output if item.type == "function_call"]
    assert [(c.name, c.arguments) for c in streamed] == [(c.name, c.arguments) for c in calls]
    assert all(isinstance(call.parsed_arguments, dict | FindOrder) for call in streamed)
    done = [e for e in events if e.type == "response.function_call_arguments.done"]
    assert [event.arguments for event in done] == [call.arguments for call in calls]
    assert len([e for e in events if e.type == "response.function_call_arguments.delta"]) > 2


def test_what_is_stored_is_read_listed_and_deleted(client: OpenAI) -> None:
    first = client.responses.create(**WILD)
    second = client.responses.create(**WILD, previous_response_id=first.id)
    third = client.responses.create(**WILD, previous_response_id=second.id)
    usages = [answer.usage for answer in (first, second, third)]
    lengths = [usage.input_tokens for usage in usages if usage is not None]
    assert lengths == sorted(set(lengths))
    assert client.responses.retrieve(third.id) == third
    items = list(client.responses.input_items.list(third.id, order="asc", limit=2))
    kinds: list[Any] = [getattr(item, "role", None) for item in items]
    assert [kind for kind in kinds if kind] == ["user", "assistant", "user", "assistant", "user"]
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.delete(first.id)
    for gone in (first.id, third.id):  # a chain with a link missing goes on no more
        with pytest.raises(openai.APIStatusError) as refused:
            client.responses.create(**WILD, previous_response_id=gone)
        assert refused.value.status_code in (400, 404)
        assert refused.value.param == "previous_response_id"
    unstored = client.responses.create(**WILD, store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(unstored.id)


def test_logprobs_are_included_where_asked_for(client: OpenAI) -> None:
    asked: dict[str, Any] = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    answer = client.responses.create(**WILD, **asked)
    parts: list[Any] = [
        part for item in answer.output if item.type == "message" for part in item.content
    ]
    raw = b"".join(bytes(entry.bytes) for part in parts for entry in part.logprobs)
    assert raw.decode("utf-8", "replace") == answer.output_text
    assert all(len(entry.top_logprobs) == 2 for part in parts for entry in part.logprobs)


def test_tokens_are_counted_without_answering(client: OpenAI) -> None:
    counted = client.responses.input_tokens.count(model=POET, input=WILD["input"])
    usage = client.responses.create(**WILD).usage
    assert usage is not None
    assert counted.input_tokens == usage.input_tokens


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"input": []}, "input"),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
        "input",
    ),
    ({"background": True}, "background"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"prompt": {"id": "pmpt_1"}}, "prompt"),
    ({"truncation": "auto"}, "truncation"),
    ({"tools": [{"type": "web_search"}]}, "tools"),
    ({"previous_response_id": "resp_nobody"}, "previous_response_id"),
    ({"input": [{"type": "function_call_output", "call_id": "x", "output": "y"}]}, "input"),
    ({"extra_body": {"what_is_this": 1}}, "what_is_this"),
]


@pytest.mark.parametrize(("fields", "param"), REFUSED)
def test_what_is_not_supported_is_named(client: OpenAI, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        client.responses.create(**{**WILD, **fields})
    assert refused.value.status_code in (400, 404)
    assert (refused.value.param or "").startswith(param)
    assert refused.value.code
