"""The official client's own loop of tools over the Responses API, whole and streamed."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.lib.responses_tool_runner import RegisteredFunction, ResponsesToolRunner
from pydantic import BaseModel, Field

from tests.conformance.conftest import POET, Real

CALL, END = "<tool_call>", "<|end|>"


class Weigh(BaseModel):
    """Weighs tea."""

    grams: int = Field(ge=1, le=500)


TOOL: Any = openai.pydantic_function_tool(Weigh)["function"] | {"type": "function"}
PARAMS: Any = {
    "model": POET,
    "input": "Weigh the tea.",
    "max_output_tokens": 400,
    "reasoning": {"effort": "none"},
    "parallel_tool_calls": False,
}


class Nudging(OpenAI):
    """Nudges random weights into a call at first, and into an end once they have its result."""

    bias: dict[str, dict[str, int]]

    def _prepare_options(self, options: Any) -> Any:
        history = options.json_data["input"]
        has_result = any("function_call_output" in str(item) for item in history)
        bias = self.bias["then" if has_result else "first"]
        return options.model_copy(update={"json_data": {**options.json_data, "logit_bias": bias}})


@pytest.mark.parametrize("stream", [False, True])
def test_the_clients_own_loop_comes_to_its_end(real: Real, stream: bool) -> None:
    ids = real.server.base.tokenizer.convert_tokens_to_ids
    weighed: list[int] = []

    def weigh(arguments: dict[str, Any]) -> str:
        weighed.append(Weigh.model_validate(arguments).grams)
        return f"{weighed[-1]} g 🍵"

    runner = ResponsesToolRunner(functions=[RegisteredFunction(TOOL, weigh)])
    with Nudging(base_url=real.url + "/v1", api_key="none", max_retries=0) as client:
        client.bias = {"first": {ids(CALL): 100, ids(END): 50}, "then": {ids(END): 12}}
        final = runner.run(client, PARAMS, max_steps=4, stream=stream)
    assert len(weighed) == 1
    assert final.status == "completed"
    assert [item.type for item in final.output] == ["message"]
