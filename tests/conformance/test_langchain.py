"""LangChain's ChatOpenAI: a loop of tools, structured output in three ways, streams, batches."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any, Literal

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, ConfigDict, Field, SecretStr

from tests.conformance.conftest import BASE, POET, Real

ASK = [SystemMessage("You help."), HumanMessage("Where is my order 4711?")]
Make = Callable[..., ChatOpenAI]
one_loop = pytest.mark.asyncio(loop_scope="module")  # LangChain keeps connections between models


class Verdict(BaseModel):
    """What becomes of an order."""

    model_config = ConfigDict(extra="forbid")

    state: Literal["sent", "lost", "在途"]
    days: int = Field(ge=0, le=30)


@tool
def find_order(
    number: Annotated[int, Field(ge=1, le=99999)], carrier: Literal["DHL", "邮政"]
) -> str:
    """Where a parcel is."""
    return f"{carrier} has {number} 🦊"


@pytest.fixture
def chat(real: Real) -> Make:
    def make(**fields: Any) -> ChatOpenAI:
        fields = {"model": POET, "max_tokens": 200, "reasoning_effort": "none", "seed": 4} | fields
        key = SecretStr("none")
        return ChatOpenAI(base_url=real.url + "/v1", api_key=key, max_retries=0, **fields)

    return make


def test_a_loop_of_tools(chat: Make) -> None:
    bound = chat().bind_tools([find_order], tool_choice="any", strict=True)
    first = bound.invoke(ASK)
    assert isinstance(first, AIMessage)
    assert first.invalid_tool_calls == []
    results = []
    for call in first.tool_calls:
        result = find_order.invoke(call)
        assert isinstance(result, ToolMessage)
        assert str(result.content).endswith("🦊")
        results.append(result)
    assert results
    last = chat(model=BASE, temperature=0, max_tokens=16).invoke([*ASK, first, *results])
    assert last.content
    assert last.usage_metadata is not None
    assert last.usage_metadata["output_tokens"] <= 16
    assert last.response_metadata["model_name"] == BASE


@one_loop
async def test_the_loop_streamed_and_async(chat: Make) -> None:
    bound = chat(stream_usage=True).bind_tools([find_order], tool_choice="find_order", strict=True)
    whole = bound.invoke(ASK)
    assert isinstance(whole, AIMessage)
    gathered: Any = None
    async for chunk in bound.astream(ASK):
        gathered = chunk if gathered is None else gathered + chunk
    assert [(c["name"], c["args"]) for c in gathered.tool_calls] == [
        (c["name"], c["args"]) for c in whole.tool_calls
    ]
    assert gathered.usage_metadata["output_tokens"] == whole.usage_metadata["output_tokens"]  # type: ignore[index]
    again: Any = await bound.ainvoke(ASK)
    assert again.tool_calls[0]["args"] == whole.tool_calls[0]["args"]


@pytest.mark.parametrize("method", ["function_calling", "json_schema"])
@pytest.mark.parametrize("schema", [Verdict, Verdict.model_json_schema()])
def test_structured_output(chat: Make, method: Any, schema: Any) -> None:
    found = chat().with_structured_output(schema, method=method).invoke(ASK)
    assert isinstance(found, Verdict) or Verdict.model_validate(found)


def test_json_mode_promises_an_object_only(chat: Make, real: Real) -> None:
    closing = real.server.base.tokenizer.convert_tokens_to_ids("}")
    model = chat(logit_bias={closing: 100})  # as soon as the grammar lets it
    ways: Any = model.with_structured_output(Verdict, method="json_mode", include_raw=True)
    found = ways.invoke(ASK)
    assert found["raw"].content.startswith("{")
    assert json.loads(found["raw"].content) == {}
    assert found["parsing_error"]


def test_a_stream_with_usage(chat: Make) -> None:
    whole = chat(max_tokens=12, logprobs=True, top_logprobs=2).invoke(ASK)
    chunks = list(chat(max_tokens=12, logprobs=True, top_logprobs=2, stream_usage=True).stream(ASK))
    gathered = chunks[0]
    for chunk in chunks[1:]:
        gathered += chunk
    assert gathered.content == whole.content
    assert gathered.usage_metadata is not None
    assert whole.usage_metadata is not None
    for key in ("input_tokens", "output_tokens", "total_tokens"):
        assert gathered.usage_metadata[key] == whole.usage_metadata[key]
    ours = gathered.response_metadata["logprobs"]["content"]
    assert ours == whole.response_metadata["logprobs"]["content"]


@one_loop
async def test_batches(chat: Make) -> None:
    model = chat(max_tokens=6)
    questions: list[Any] = [[HumanMessage(f"question {number} 🦊")] for number in range(6)]
    batch = model.batch(questions)
    assert [answer.content for answer in await model.abatch(questions)] == [
        answer.content for answer in batch
    ]
    assert len({answer.id for answer in batch}) == 6


def test_through_responses(chat: Make) -> None:
    model = chat(use_responses_api=True, seed=None, temperature=0)
    whole = model.bind(max_tokens=8).invoke(ASK)
    assert whole.text
    streamed = "".join(chunk.text for chunk in model.bind(max_tokens=8).stream(ASK))
    assert streamed == whole.text
    bound = model.bind_tools([find_order], tool_choice="any", strict=True)
    first: Any = bound.invoke(ASK)
    results = [find_order.invoke(call) for call in first.tool_calls]
    assert results
    last = model.bind(max_tokens=8).invoke([*ASK, first, *results])
    assert last.usage_metadata is not None
