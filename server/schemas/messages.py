"""The messages of a chat."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import model_validator

from server.fields import OneOrMany, StrictBody, Text, neutral, refuse
from server.json_values import JsonObject


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
    tool_calls: list[JsonObject] | None = None
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
