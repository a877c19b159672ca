"""The form that an answer must have: OpenAI's ``response_format``, vLLM's structured outputs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from server.fields import StrictBody, Text, refuse
from server.json_values import JsonObject

MAX_CHOICES = 1024


class TextFormat(StrictBody):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(StrictBody):
    """Any JSON object."""

    type: Literal["json_object"]


class JsonSchema(StrictBody):
    """A named JSON schema. Answers always follow it, ``strict`` or not."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: Text | None = None
    schema_: JsonObject | None = Field(None, alias="schema")
    strict: bool | None = None


class JsonSchemaFormat(StrictBody):
    """JSON that a schema admits."""

    type: Literal["json_schema"]
    json_schema: JsonSchema


def _type_of(value: Any) -> str | None:
    if isinstance(value, dict):
        return f"~{value.get('type')}"
    return None


ResponseFormat = Annotated[
    Annotated[TextFormat, Tag("~text")]
    | Annotated[JsonObjectFormat, Tag("~json_object")]
    | Annotated[JsonSchemaFormat, Tag("~json_schema")],
    Discriminator(
        _type_of,
        custom_error_type="unknown_format",
        custom_error_message="type is one of text, json_object and json_schema",
    ),
]


class StructuredOutputs(StrictBody):
    """vLLM's constraints: exactly one of them."""

    json_: JsonObject | Text | None = Field(
        None, alias="json", description="a JSON schema, as an object or as text"
    )
    regex: Text | None = Field(None, min_length=1, description="which the whole answer matches")
    choice: list[Annotated[Text, Field(min_length=1)]] | None = Field(
        None, min_length=1, max_length=MAX_CHOICES, description="the answer is one of these"
    )
    grammar: Text | None = Field(None, min_length=1, description="in Lark's syntax")
    json_object: bool | None = None

    @model_validator(mode="after")
    def _check_one(self) -> StructuredOutputs:
        given = [self.json_, self.regex, self.choice, self.grammar, self.json_object or None]
        if sum(value is not None for value in given) != 1:
            message = "Give exactly one of json, regex, choice, grammar and json_object: true."
            raise refuse("invalid_combination", message, "")
        return self
