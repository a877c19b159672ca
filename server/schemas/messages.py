"""The messages of a chat."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from artifacts.chat_messages import PART_SEPARATOR
from server.fields import OneOrMany, StrictBody, Text, neutral, refuse
from server.json_values import JsonObject

MAX_PARTS = 16_384  # together: each takes some 10 µs in which no stream goes on


def few_parts(messages: Any) -> Any:
    """The messages, or items, unless they have too many parts, for the price of counting them."""
    given = messages if isinstance(messages, list) else ()
    lists = [
        one.get(key) for one in given if isinstance(one, dict) for key in ("content", "output")
    ]
    num = sum(len(parts) for parts in lists if isinstance(parts, list))
    if num > MAX_PARTS:
        message = "{num} parts of contents, at most {most} are accepted together; join their texts"
        raise PydanticCustomError("too_many_parts", message, {"num": num, "most": MAX_PARTS})
    return messages


class TextPart(StrictBody):
    """A part of a message's content. Text is the only type that a text model reads."""

    type: Literal["text"]
    text: Text
    prompt_cache_breakpoint: Any = Field(None, exclude=True, description="a hint; not read")

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
    content: OneOrMany[Text, list[TextPart]] | None = Field(
        None, description="a text, or text parts"
    )
    reasoning_content: Text | None = Field(
        None, description="thoughts of an earlier answer; the template decides what it shows"
    )
    tool_calls: list[JsonObject] | None = Field(
        None, description="calls of an earlier answer, as it held them"
    )
    tool_call_id: Text | None = Field(None, description="the call that this result belongs to")
    name: Text | None = Field(
        None, max_length=256, description="of the speaker; refused where the template drops it"
    )
    parsed: Any = Field(None, description="as OpenAI's client sends it back; changes nothing")

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
        for key in ("name", "reasoning_content", "tool_calls", "tool_call_id"):
            if (value := getattr(self, key)) is not None:
                message[key] = value
        return message

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            return PART_SEPARATOR.join(part.text for part in self.content)
        return self.content if self.content is not None else ""

    @model_validator(mode="after")
    def _check_content(self) -> Message:
        has_more = bool(self.tool_calls or self.reasoning_content)
        if self.content is None and not (self.role == "assistant" and has_more):
            raise refuse("missing", "content is required.", "content")
        return self


Messages = Annotated[list[Message], BeforeValidator(few_parts)]
