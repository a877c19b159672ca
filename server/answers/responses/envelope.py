"""The response object around the output: what was asked, how it stands. Knows no HTTP."""

from __future__ import annotations

import time
from typing import Any

from server.answers.generation import Answer
from server.answers.responses.items import Item
from server.answers.sampling import given
from server.errors import ApiError
from server.schemas.response_items import FunctionTool, ResponseToolChoice
from server.schemas.responses import ResponsesRequest


class Envelope:
    """One response. Its request is echoed, with OpenAI's defaults where it says nothing."""

    def __init__(self, body: ResponsesRequest, answer: Answer) -> None:
        self._answer = answer
        self._head = {"id": answer.id, "object": "response", "created_at": answer.created}
        self._tail = {**_echo(body), "model": answer.model, "store": body.is_stored}

    def running(self) -> dict[str, Any]:
        """Accepted, nothing said yet."""
        return self._json("in_progress", [])

    def ended(self, output: list[Item], *, is_cut: bool) -> dict[str, Any]:
        """All has been said, or as many tokens as were allowed."""
        usage = usage_json(self._answer)
        if is_cut:
            details = {"reason": "max_output_tokens"}
            return self._json("incomplete", output, incomplete_details=details, usage=usage)
        now = int(time.time())
        return self._json("completed", output, completed_at=now, usage=usage)

    def failed(self, output: list[Item], error: ApiError) -> dict[str, Any]:
        """No more will come. ``code`` is one of OpenAI's few; the message says what happened."""
        code = "invalid_prompt" if error.status == 400 else "server_error"
        return self._json("failed", output, error={"code": code, "message": error.message})

    def _json(self, status: str, output: list[Item], **set_: Any) -> dict[str, Any]:
        ends = {"completed_at": None, "error": None, "incomplete_details": None, "usage": None}
        state = {"status": status, "background": False, **ends, **set_}
        return {**self._head, **state, "output": output, **self._tail}


def usage_json(answer: Answer) -> dict[str, Any]:
    """Exact once the answer has ended. Every prompt may be kept in the cache; none is billed."""
    return {
        "input_tokens": answer.num_prompt_tokens,
        "input_tokens_details": {"cached_tokens": answer.num_cached, "cache_write_tokens": 0},
        "output_tokens": answer.num_generated,
        "output_tokens_details": {"reasoning_tokens": answer.num_thinking},
        "total_tokens": answer.num_prompt_tokens + answer.num_generated,
    }


def _echo(body: ResponsesRequest) -> dict[str, Any]:
    reasoning = body.reasoning
    return {
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "metadata": given(body.metadata, {}),
        "parallel_tool_calls": given(body.parallel_tool_calls, True),
        "previous_response_id": body.previous_response_id,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": {"effort": None if reasoning is None else reasoning.effort, "summary": None},
        "safety_identifier": body.safety_identifier,
        "service_tier": "default",
        "temperature": given(body.temperature, 1.0),
        "text": _text(body),
        "tool_choice": _tool_choice(body.tool_choice),
        "tools": [_tool(tool) for tool in given(body.tools, [])],
        "top_logprobs": given(body.top_logprobs, 0),
        "top_p": given(body.top_p, 1.0),
        "truncation": "disabled",
        "user": body.user,
    }


def _text(body: ResponsesRequest) -> dict[str, Any]:
    wanted = None if body.text is None else body.text.format
    if wanted is None:
        return {"format": {"type": "text"}, "verbosity": "medium"}
    return {"format": wanted.model_dump(by_alias=True), "verbosity": "medium"}


def _tool_choice(choice: ResponseToolChoice | None) -> Any:
    if choice is None or isinstance(choice, str):
        return given(choice, "auto")
    return choice.model_dump()


def _tool(tool: FunctionTool) -> dict[str, Any]:
    names = {"type", "name", "description", "parameters"}
    return {**tool.model_dump(include=names), "strict": given(tool.strict, True)}
