"""Bodies of /v1/chat/completions and /v1/completions: OpenAI's fields, vLLM's sampling extensions.

Honoured fields have a type; fields marked ``neutral(...)`` are known but unsupported and pass only
at a value that changes nothing; every other key is refused. ``null`` always means "not given".
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, JsonValue, Tag, model_validator

from server.fields import OneOrMany, StrictBody, Text, neutral, refuse

MAX_STOP = 4
MAX_STOP_LENGTH = 1000
MAX_STOP_TOKEN_IDS = 64
MAX_TOP_LOGPROBS = 20
MAX_MESSAGES = 8192
MAX_PROMPTS = 64
INT64 = 2**63

StopText = Annotated[Text, Field(min_length=1, max_length=MAX_STOP_LENGTH)]
StopTexts = Annotated[list[StopText], Field(max_length=MAX_STOP)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]


class StreamOptions(StrictBody):
    """Options of a streamed answer."""

    include_usage: bool | None = None
    include_obfuscation: Annotated[bool | None, neutral(False)] = None


class SamplingFields(StrictBody):
    """What both kinds of completions share."""

    model: Text = Field(min_length=1, max_length=512, examples=["loraloop-embedded"])
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1, lt=2**31)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1, lt=2**31, description="0 or -1 keeps all")
    min_p: float | None = Field(None, ge=0, le=1)
    min_tokens: int | None = Field(None, ge=0, lt=2**31)
    ignore_eos: bool | None = None
    seed: int | None = Field(None, ge=-INT64, lt=INT64)
    stop: OneOrMany[StopText, StopTexts] | None = None
    stop_token_ids: list[TokenId] | None = Field(None, max_length=MAX_STOP_TOKEN_IDS)
    n: int | None = Field(None, ge=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    user: Text | None = Field(None, max_length=1024, description="keeps its arm of an experiment")
    metadata: dict[str, Text] | None = Field(None, max_length=16)

    logit_bias: Annotated[Any, neutral({})] = None
    repetition_penalty: Annotated[float | None, neutral(1.0)] = None
    length_penalty: Annotated[float | None, neutral(1.0)] = None
    use_beam_search: Annotated[bool | None, neutral(False)] = None
    skip_special_tokens: Annotated[bool | None, neutral(True)] = None
    spaces_between_special_tokens: Annotated[bool | None, neutral(True)] = None
    include_stop_str_in_output: Annotated[bool | None, neutral(False)] = None
    structured_outputs: Annotated[Any, neutral({})] = None
    priority: Annotated[int | None, neutral(0)] = None

    @model_validator(mode="after")
    def _check_combinations(self) -> SamplingFields:
        if self.stream_options is not None and not self.stream:
            message = "stream_options needs stream: true."
            raise refuse("invalid_combination", message, "stream_options")
        if self.user == "":
            self.user = None
        return self

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """``stop`` in one shape."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def has_usage_chunk(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage is True


class TextPart(StrictBody):
    """A part of a message's content. Text is the only type that a text model reads."""

    type: Literal["text"]
    text: Text

    @model_validator(mode="before")
    @classmethod
    def _refuse_other_types(cls, value: Any) -> Any:
        kind = value.get("type") if isinstance(value, dict) else None
        if isinstance(kind, str) and kind != "text":
            raise refuse(
                "unsupported_parameter", f"This model reads text only, not {kind!r}.", "type"
            )
        return value


class Message(StrictBody):
    """One message of a chat. The base's template decides which roles it can render."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: OneOrMany[Text, list[TextPart]] | None = None
    reasoning_content: Text | None = None
    tool_calls: list[dict[str, JsonValue]] | None = None
    tool_call_id: Text | None = None

    name: Annotated[Any, neutral()] = None
    refusal: Annotated[Any, neutral()] = None
    audio: Annotated[Any, neutral()] = None
    annotations: Annotated[Any, neutral([])] = None
    function_call: Annotated[Any, neutral()] = None

    def plain(self) -> dict[str, Any]:
        """What the renderer takes: text joined, ``developer`` under its older name ``system``."""
        message: dict[str, Any] = {
            "role": "system" if self.role == "developer" else self.role,
            "content": self.text,
        }
        for key in ("reasoning_content", "tool_calls", "tool_call_id"):
            if (value := getattr(self, key)) is not None:
                message[key] = value
        return message

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content if self.content is not None else ""

    @model_validator(mode="after")
    def _check_content(self) -> Message:
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise refuse("missing", "content is required.", "content")
        return self


class ChatRequest(SamplingFields):
    """POST /v1/chat/completions."""

    messages: list[Message] = Field(
        min_length=1,
        max_length=MAX_MESSAGES,
        examples=[[{"role": "user", "content": "Where is my order?"}]],
    )
    max_completion_tokens: int | None = Field(None, ge=1, lt=2**31)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)

    tools: Annotated[Any, neutral([])] = None
    tool_choice: Annotated[Any, neutral("none", "auto")] = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[Any, neutral([])] = None
    function_call: Annotated[Any, neutral("none", "auto")] = None
    response_format: Annotated[Any, neutral({"type": "text"})] = None
    modalities: Annotated[Any, neutral(["text"])] = None
    audio: Annotated[Any, neutral()] = None
    prediction: Annotated[Any, neutral()] = None
    reasoning_effort: Annotated[Any, neutral("none")] = None
    verbosity: Annotated[Any, neutral("medium")] = None
    web_search_options: Annotated[Any, neutral()] = None
    store: Annotated[bool | None, neutral(False)] = None
    service_tier: Annotated[Any, neutral("auto", "default")] = None
    prompt_cache_key: Text | None = Field(None, description="a hint; changes nothing")
    safety_identifier: Text | None = Field(None, description="a hint; changes nothing")
    add_generation_prompt: Annotated[bool | None, neutral(True)] = None
    continue_final_message: Annotated[bool | None, neutral(False)] = None
    chat_template: Annotated[Any, neutral()] = None
    chat_template_kwargs: Annotated[Any, neutral({})] = None

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
        return self

    @property
    def token_limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def num_top_logprobs(self) -> int | None:
        """As the engine wants it: None for no logprobs."""
        if not self.logprobs:
            return None
        return 0 if self.top_logprobs is None else self.top_logprobs


def _prompt_shape(value: Any) -> str | None:
    first = value[0] if isinstance(value, list) and value else None
    if isinstance(first, int):
        return "~ids"
    if isinstance(first, list):
        return "~id_lists"
    return "~texts" if isinstance(value, list) else "~text"


def _single(ids: list[int]) -> list[list[int]]:
    return [ids]


# One text, several texts, one list of token ids (kept as a list of one) or several lists.
Prompt = Annotated[
    Annotated[Text, Tag("~text")]
    | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS), Tag("~texts")]
    | Annotated[list[TokenId], AfterValidator(_single), Tag("~ids")]
    | Annotated[
        list[Annotated[list[TokenId], Field(min_length=1)]],
        Field(min_length=1, max_length=MAX_PROMPTS),
        Tag("~id_lists"),
    ],
    Discriminator(_prompt_shape),
]


class CompletionRequest(SamplingFields):
    """POST /v1/completions."""

    prompt: Prompt = Field(examples=["Once upon a time"])
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)

    best_of: Annotated[int | None, neutral(1)] = None
    echo: Annotated[bool | None, neutral(False)] = None
    suffix: Annotated[Any, neutral("")] = None
    add_special_tokens: Annotated[bool | None, neutral(True)] = None

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """``prompt`` as a list of texts or of token id lists."""
        shaped: Any = self.prompt  # after validation never a flat list of ids
        return shaped if isinstance(shaped, list) else [shaped]
