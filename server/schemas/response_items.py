"""The items of OpenAI's Responses API: what a client sends, and what it sends back of an answer."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from artifacts.chat_messages import PART_SEPARATOR
from server.fields import OneOrMany, StrictBody, Text, neutral, refuse
from server.json_values import JsonObject
from server.schemas.sampling import Effort

MAX_ITEMS = 8192
Status = Literal["in_progress", "completed", "incomplete"]
ItemId = Annotated[Text, Field(max_length=128)]


def _only(noun: str, *known: str) -> BeforeValidator:
    """Refuses objects whose ``type`` is something else, by that name."""

    def check(value: Any) -> Any:
        kind = value.get("type") if isinstance(value, dict) else None
        if isinstance(kind, str) and kind not in known:
            supported = ", ".join(known)
            message = f"{noun} of type {kind[:64]!r} are not supported, but: {supported}."
            raise refuse("unsupported_parameter", message, "type")
        return value

    return BeforeValidator(check)


class TextContent(StrictBody):
    """A part of a message. What clients send back of an answer's text is read as text alone."""

    type: Literal["input_text", "output_text"]
    text: Text
    annotations: Annotated[Any, neutral([])] = None
    logprobs: Any = Field(None, exclude=True, description="of an answer; not read")
    prompt_cache_breakpoint: Any = Field(None, exclude=True, description="a hint; not read")


TextParts = list[Annotated[TextContent, _only("Parts", "input_text", "output_text")]]


def text_of(content: str | list[TextContent]) -> str:
    """The text of a message or of a function's output."""
    if isinstance(content, str):
        return content
    return PART_SEPARATOR.join(part.text for part in content)


class MessageItem(StrictBody):
    """A message, of whichever side."""

    type: Literal["message"] = "message"
    id: ItemId | None = None
    status: Status | None = None
    role: Literal["system", "developer", "user", "assistant"]
    content: OneOrMany[Text, TextParts]
    phase: Annotated[Any, neutral("final_answer")] = None


class CallItem(StrictBody):
    """A call of a function, as an answer held it."""

    type: Literal["function_call"]
    id: ItemId | None = None
    status: Status | None = None
    call_id: Text = Field(min_length=1, max_length=128)
    name: Text = Field(min_length=1, max_length=64)
    arguments: Text = Field(description="JSON")
    namespace: Annotated[Any, neutral()] = None
    caller: Annotated[Any, neutral({"type": "direct"})] = None
    async_: Annotated[Any, neutral(False)] = Field(None, alias="async")
    created_by: Any = Field(None, exclude=True, description="of other servers; not read")


class CallOutputItem(StrictBody):
    """What a function returned."""

    type: Literal["function_call_output"]
    id: ItemId | None = None
    status: Status | None = None
    call_id: Text = Field(min_length=1, max_length=128)
    output: OneOrMany[Text, TextParts]
    name: Any = Field(None, exclude=True, description="the call says it; not read")
    namespace: Annotated[Any, neutral()] = None
    caller: Annotated[Any, neutral({"type": "direct"})] = None
    created_by: Any = Field(None, exclude=True, description="of other servers; not read")


class ThoughtContent(StrictBody):
    """Thoughts as text."""

    type: Literal["reasoning_text"]
    text: Text


class ReasoningItem(StrictBody):
    """What a model thought before the items that follow. Templates decide what they show of it."""

    type: Literal["reasoning"]
    id: ItemId | None = None
    status: Status | None = None
    summary: Annotated[Any, neutral([], because="only whole thoughts, in content, are read")] = None
    content: list[ThoughtContent] | None = None
    encrypted_content: Annotated[
        Any, neutral(because="nobody but who wrote it can read it; send the thoughts in content")
    ] = None

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.content or ())


def _tag_of(value: Any) -> str | None:
    if not isinstance(value, dict):
        return None
    kind = value.get("type")
    return "~message" if kind is None else f"~{kind}"


InputItem = Annotated[
    Annotated[MessageItem, Tag("~message")]
    | Annotated[CallItem, Tag("~function_call")]
    | Annotated[CallOutputItem, Tag("~function_call_output")]
    | Annotated[ReasoningItem, Tag("~reasoning")],
    Discriminator(
        _tag_of,
        custom_error_type="unknown_item",
        custom_error_message="an item is an object of a known type",
    ),
    _only("Items", "message", "function_call", "function_call_output", "reasoning"),
]


class FunctionTool(StrictBody):
    """One function that may be called."""

    type: Literal["function"]
    name: str = Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")
    description: Text | None = None
    parameters: JsonObject | None = None
    strict: bool | None = Field(None, description="arguments always follow the schema")
    defer_loading: Annotated[Any, neutral(False)] = None
    allowed_callers: Annotated[Any, neutral(["direct"])] = None
    output_schema: Annotated[Any, neutral()] = None
    async_: Annotated[Any, neutral(False)] = Field(None, alias="async")


ResponseTool = Annotated[FunctionTool, _only("Tools", "function")]


class ChosenFunction(StrictBody):
    """A function by its name."""

    type: Literal["function"]
    name: Text = Field(min_length=1, max_length=64)


class AllowedFunctions(StrictBody):
    """Some of ``tools``, of which one may (auto) or must (required) be called."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[Annotated[ChosenFunction, _only("Tools", "function")]] = Field(min_length=1)


def _choice_tag(value: Any) -> str:
    if isinstance(value, dict):
        return "~allowed" if value.get("type") == "allowed_tools" else "~function"
    return "~mode"


ResponseToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("~mode")]
    | Annotated[ChosenFunction, Tag("~function")]
    | Annotated[AllowedFunctions, Tag("~allowed")],
    Discriminator(_choice_tag),
    _only("Choices", "function", "allowed_tools"),
]


class FlatJsonSchema(StrictBody):
    """JSON that a schema admits. Answers always follow it, ``strict`` or not."""

    type: Literal["json_schema"]
    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: Text | None = None
    schema_: JsonObject = Field(alias="schema")
    strict: bool | None = None


class PlainFormat(StrictBody):
    """Any text, or any JSON object."""

    type: Literal["text", "json_object"]


TextFormat = Annotated[
    Annotated[PlainFormat, Tag("~plain")] | Annotated[FlatJsonSchema, Tag("~schema")],
    Discriminator(
        lambda value: (
            "~schema"
            if isinstance(value, dict) and value.get("type") == "json_schema"
            else "~plain"
        )
    ),
    _only("Formats", "text", "json_object", "json_schema"),
]


class TextOptions(StrictBody):
    """The form of the answer's text."""

    format: TextFormat | None = None
    verbosity: Annotated[Any, neutral("medium")] = None


class ReasoningOptions(StrictBody):
    """How long a reasoning model may think."""

    effort: Effort | None = None
    summary: Annotated[Any, neutral("auto", because="thoughts are shown whole")] = None
    generate_summary: Annotated[Any, neutral("auto", because="thoughts are shown whole")] = None
    context: Annotated[Any, neutral("auto", because="the base's template decides")] = None
    mode: Annotated[Any, neutral("standard")] = None
