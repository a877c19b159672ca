"""POST /v1/responses, and what its sub-routes take."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from server.fields import OneOrMany, StrictBody, Text, neutral, refuse
from server.json_values import JsonObject
from server.schemas.messages import few_parts
from server.schemas.response_items import (
    MAX_ITEMS,
    InputItem,
    ReasoningOptions,
    ResponseTool,
    ResponseToolChoice,
    TextOptions,
)
from server.schemas.sampling import INT31, MAX_TOP_LOGPROBS, SamplingFields
from server.schemas.tools import MAX_TOOLS

LOGPROBS = "message.output_text.logprobs"
Includable = Literal[
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
]
Items = Annotated[list[InputItem], Field(min_length=1, max_length=MAX_ITEMS)]
Input = Annotated[OneOrMany[Text, Items], BeforeValidator(few_parts)]
ResponseId = Annotated[Text, Field(min_length=1, max_length=128)]
_NO_CONVERSATIONS = "name the previous response in previous_response_id"


class ResponsesRequest(SamplingFields):
    """OpenAI's body, with vLLM's extensions."""

    input: Input = Field(description="a text, or items", examples=["Where is my order?"])
    instructions: Text | None = Field(
        None, description="a system message before all others; not carried over to a next response"
    )
    previous_response_id: ResponseId | None = Field(
        None, description="its input and output, and what it goes on from, come before the input"
    )
    max_output_tokens: int | None = Field(
        None, ge=1, lt=INT31, description="what is left of the context if left out; thoughts count"
    )
    max_tool_calls: int | None = Field(
        None, ge=1, description="of built-in tools, of which there are none"
    )
    top_logprobs: int | None = Field(
        None, ge=0, le=MAX_TOP_LOGPROBS, description="likeliest tokens shown beside each"
    )
    include: list[Includable] | None = Field(
        None,
        max_length=32,
        description=f"{LOGPROBS} adds log-probabilities; the others name what there never is here",
    )
    tools: list[ResponseTool] | None = Field(
        None, max_length=MAX_TOOLS, description="functions that may be called"
    )
    tool_choice: ResponseToolChoice | None = Field(
        None, description="auto where there are tools; required and a named one force a call"
    )
    parallel_tool_calls: bool | None = Field(None, description="false: at most one call")
    text: TextOptions | None = Field(None, description="the form of the answer's text")
    reasoning: ReasoningOptions | None = Field(
        None, description="how long a reasoning model may think"
    )
    store: bool | None = Field(None, description="kept unless it is false")

    thinking_token_budget: int | None = Field(
        None, ge=0, lt=INT31, description="tokens that a reasoning model may think, exactly"
    )
    chat_template_kwargs: JsonObject | None = Field(
        None, description="variables for the base's chat template"
    )

    prompt_cache_key: Text | None = Field(None, description="a hint; changes nothing")
    prompt_cache_retention: Any = Field(None, description="a hint; changes nothing")
    safety_identifier: Text | None = Field(None, description="a hint; changes nothing")

    n: Annotated[int | None, neutral(1, because="a response is one answer")] = None
    background: Annotated[bool | None, neutral(False, because="wait for the answer")] = None
    conversation: Annotated[Any, neutral(because=_NO_CONVERSATIONS)] = None
    prompt: Annotated[Any, neutral(because="there are no stored prompts; send the text")] = None
    truncation: Annotated[Any, neutral("disabled", because="leave out items yourself")] = None
    context_management: Annotated[Any, neutral([])] = None
    moderation: Annotated[Any, neutral()] = None
    service_tier: Annotated[Any, neutral("auto", "default")] = None
    image: Annotated[Any, neutral()] = None
    access_programs: Annotated[Any, neutral()] = None
    prompt_cache_options: Annotated[Any, neutral()] = None

    @model_validator(mode="after")
    def _check_logprobs(self) -> ResponsesRequest:
        if self.top_logprobs and not self.has_logprobs:
            message = f'top_logprobs needs include: ["{LOGPROBS}"].'
            raise refuse("invalid_combination", message, "top_logprobs")
        return self

    @property
    def has_logprobs(self) -> bool:
        return LOGPROBS in (self.include or ())

    @property
    def is_stored(self) -> bool:
        return self.store is not False


class InputTokensRequest(StrictBody):
    """What a response would be made of, to be counted."""

    model: Text | None = Field(
        None, min_length=1, max_length=512, description="all models here count alike"
    )
    input: Input | None = Field(None, description="as in a response")
    instructions: Text | None = Field(None, description="as in a response")
    previous_response_id: ResponseId | None = Field(None, description="as in a response")
    tools: list[ResponseTool] | None = Field(
        None, max_length=MAX_TOOLS, description="as in a response"
    )
    tool_choice: ResponseToolChoice | None = Field(None, description="as in a response")
    parallel_tool_calls: bool | None = Field(None, description="as in a response")
    text: TextOptions | None = Field(None, description="as in a response")
    reasoning: ReasoningOptions | None = Field(None, description="as in a response")
    conversation: Annotated[Any, neutral(because=_NO_CONVERSATIONS)] = None
    truncation: Annotated[Any, neutral("disabled", because="leave out items yourself")] = None
    personality: Annotated[Any, neutral()] = None
