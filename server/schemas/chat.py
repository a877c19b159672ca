"""POST /v1/chat/completions."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from server.fields import neutral, refuse
from server.json_values import JsonObject
from server.schemas.formats import ResponseFormat
from server.schemas.messages import Messages
from server.schemas.sampling import (
    INT31,
    MAX_TOP_LOGPROBS,
    CompatibleFields,
    Effort,
    SamplingFields,
)
from server.schemas.tools import MAX_TOOLS, Tool, ToolChoice

MAX_MESSAGES = 8192


class ChatRequest(SamplingFields, CompatibleFields):
    """OpenAI's body, with vLLM's extensions."""

    messages: Messages = Field(
        min_length=1,
        max_length=MAX_MESSAGES,
        description="the chat so far; the base's template renders it",
        examples=[[{"role": "user", "content": "Where is my order?"}]],
    )
    max_tokens: int | None = Field(
        None, ge=1, lt=INT31, description="what is left of the context if left out; thoughts count"
    )
    max_completion_tokens: int | None = Field(None, ge=1, lt=INT31, description="the same")
    logprobs: bool | None = Field(
        None, description="of the answer's tokens, under the model's own distribution"
    )
    top_logprobs: int | None = Field(
        None, ge=0, le=MAX_TOP_LOGPROBS, description="likeliest tokens shown beside each"
    )

    tools: list[Tool] | None = Field(
        None, max_length=MAX_TOOLS, description="functions that may be called"
    )
    tool_choice: ToolChoice | None = Field(
        None, description="auto where there are tools; required and a named one force a call"
    )
    parallel_tool_calls: bool | None = Field(None, description="false: at most one call")
    response_format: ResponseFormat | None = Field(
        None, description="the form of the answer, held token by token"
    )
    reasoning_effort: Effort | None = Field(
        None, description="how many tokens a reasoning model may think"
    )
    thinking_token_budget: int | None = Field(
        None, ge=0, lt=INT31, description="tokens that a reasoning model may think, exactly"
    )
    chat_template_kwargs: JsonObject | None = Field(
        None, description="variables for the base's chat template"
    )
    add_generation_prompt: bool | None = Field(
        None, description="false only with continue_final_message"
    )
    continue_final_message: bool | None = Field(
        None, description="the answer goes on where the last message stops"
    )

    functions: Annotated[Any, neutral([], because="send tools")] = None
    function_call: Annotated[Any, neutral("none", "auto", because="send tool_choice")] = None
    modalities: Annotated[Any, neutral(["text"])] = None
    audio: Annotated[Any, neutral()] = None
    prediction: Annotated[Any, neutral()] = None
    web_search_options: Annotated[Any, neutral()] = None
    store: Annotated[bool | None, neutral(False)] = None
    chat_template: Annotated[Any, neutral()] = None

    @model_validator(mode="after")
    def _check_chat(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            message = "top_logprobs needs logprobs: true."
            raise refuse("invalid_combination", message, "top_logprobs")
        both = (self.max_tokens, self.max_completion_tokens)
        if None not in both and both[0] != both[1]:
            message = (
                f"max_tokens ({both[0]}) and max_completion_tokens ({both[1]}) differ: send one."
            )
            raise refuse("invalid_combination", message, "max_tokens")
        if self.add_generation_prompt is not None:
            self._check_generation_prompt(self.add_generation_prompt)
        return self

    def _check_generation_prompt(self, is_added: bool) -> None:
        if is_added and self.continue_final_message:
            message = "With continue_final_message the answer has no beginning: leave it out."
            raise refuse("invalid_combination", message, "add_generation_prompt")
        if not (is_added or self.continue_final_message):
            message = (
                "Without a generation prompt there is no place for an answer: leave it out, or "
                "send continue_final_message: true."
            )
            raise refuse("invalid_combination", message, "add_generation_prompt")

    @property
    def token_limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def num_top_logprobs(self) -> int | None:
        """As the engine wants it: None for no logprobs."""
        if not self.logprobs:
            return None
        return 0 if self.top_logprobs is None else self.top_logprobs
