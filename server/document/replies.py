"""What answers look like: completions, chunks, tokens, models, errors. For the document alone."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Reply(BaseModel):
    """All keys are there, and no others."""

    model_config = ConfigDict(extra="forbid")


class ErrorDetail(Reply):
    """OpenAI's error object."""

    message: str = Field(description="what was wrong, with its value, and what to do")
    type: str = Field(examples=["invalid_request_error"])
    param: str | None = Field(description="the field at fault", examples=["temperature"])
    code: str | None = Field(examples=["invalid_value"])


class Error(Reply):
    """Every answer but 2xx, and the event that ends a stream which failed."""

    error: ErrorDetail


class PromptDetails(Reply):
    cached_tokens: int = Field(description="whose keys and values were there already")


class CompletionDetails(Reply):
    reasoning_tokens: int = Field(description="of thoughts, their marks included")


class Usage(Reply):
    """Exact once the answer has ended."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


class TopLogprob(Reply):
    """Natural logarithms under the model's own distribution, before any rule of sampling."""

    token: str = Field(description="part of a character reads bytes:\\xe4")
    logprob: float
    bytes: list[int]


class ChatLogprob(TopLogprob):
    """One token of an answer."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(Reply):
    content: list[ChatLogprob]
    refusal: None = None


class CalledFunction(Reply):
    name: str
    arguments: str = Field(description="JSON, as the model wrote it")


class ToolCall(Reply):
    """A call that the model wants made."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class AnswerMessage(Reply):
    """``content`` is null where there is nothing but calls."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str = Field("", description="thoughts; only where there are any")
    tool_calls: list[ToolCall] = Field([], description="only where there are any")


FinishReason = Literal["stop", "length", "tool_calls"]


class ChatChoice(Reply):
    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class Answered(Reply):
    """What all answers share."""

    id: str = Field(examples=["chatcmpl-2f6c"])
    created: int = Field(description="unix seconds")
    model: str = Field(description="the version that answered")
    system_fingerprint: str = Field(description="equal where base and adapter bytes are equal")


class ChatCompletion(Answered):
    """A whole answer."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    usage: Usage


class CallDelta(Reply):
    """More of a call: id and name first, then pieces of the arguments."""

    index: int
    id: str = ""
    type: Literal["function"] = "function"
    function: dict[str, str]


class ChatDelta(Reply):
    role: Literal["assistant"] = "assistant"
    content: str = ""
    reasoning_content: str = ""
    tool_calls: list[CallDelta] = []


class ChunkChoice(Reply):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class ChatCompletionChunk(Answered):
    """The data of one event of a streamed answer. The first one carries the role."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChunkChoice] = Field(description="none in the chunk with usage, the last one")
    usage: Usage | None = Field(None, description="where stream_options.include_usage asks for it")


class TextLogprobs(Reply):
    """One entry for each token; of an echoed prompt's first one the logprob is null."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int] = Field(description="characters before it in the text")


class TextChoice(Reply):
    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: Literal["stop", "length"]


class TextCompletion(Answered):
    """A whole answer. Choices are numbered prompt by prompt."""

    object: Literal["text_completion"]
    choices: list[TextChoice]
    usage: Usage


class TextChunkChoice(TextChoice):
    finish_reason: Literal["stop", "length"] | None  # type: ignore[assignment]


class TextCompletionChunk(Answered):
    """The data of one event of a streamed answer."""

    object: Literal["text_completion"]
    choices: list[TextChunkChoice]
    usage: Usage | None = None


class ExportFacts(Reply):
    """A base that ``loraloop export`` wrote."""

    format: str
    adapter: str = Field(description="that was exported; inside, but for onnx-adapters")
    base: str = Field(description="that it was made from")
    proof: Literal["passed", "failed", "missing"]


class Model(Reply):
    """The base, an adapter by name, or one of its versions."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str = Field(description="the version, or the base, that it means now")
    parent: str | None = Field(description="the base of an adapter")
    max_model_len: int = Field(description="tokens of prompt and answer together")
    gate: str | None = Field(None, description="of an adapter: how its evaluation gate ended")
    export: ExportFacts | None = Field(None, description="of a base that is an export")


class ModelList(Reply):
    object: Literal["list"]
    data: list[Model]


class ResponseObject(BaseModel):
    """OpenAI's response. Its request is echoed, with OpenAI's defaults where it says nothing."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    error: dict[str, Any] | None
    incomplete_details: dict[str, Any] | None
    model: str
    output: list[dict[str, Any]] = Field(description="reasoning, message and function_call items")
    usage: dict[str, Any] | None
    previous_response_id: str | None
    store: bool


class ResponseEvent(BaseModel):
    """The data of one event of a streamed response; docs/responses.md lists the types."""

    type: str = Field(examples=["response.output_text.delta"])
    sequence_number: int


class ItemPage(Reply):
    """A part of a list."""

    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


class ResponseDeleted(Reply):
    id: str
    object: Literal["response"]
    deleted: Literal[True]


class InputTokens(Reply):
    object: Literal["response.input_tokens"]
    input_tokens: int
