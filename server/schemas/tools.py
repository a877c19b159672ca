"""Functions that a model may call, and whether it must."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from server.fields import StrictBody, Text, refuse
from server.json_values import JsonObject

MAX_TOOLS = 128
FunctionName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


class Function(StrictBody):
    """What can be called. ``parameters`` is a JSON schema of an object."""

    name: FunctionName
    description: Text | None = None
    parameters: JsonObject | None = None
    strict: bool | None = Field(None, description="arguments always follow the schema")


class Tool(StrictBody):
    """One function. OpenAI's other types of tools (custom, web search, …) are refused."""

    type: Literal["function"]
    function: Function

    @model_validator(mode="before")
    @classmethod
    def _refuse_other_types(cls, value: Any) -> Any:
        kind = value.get("type") if isinstance(value, dict) else None
        if isinstance(kind, str) and kind != "function":
            message = f"Tools of type {kind!r} are not supported; offer functions."
            raise refuse("unsupported_parameter", message, "type")
        return value


class NamedFunction(StrictBody):
    name: FunctionName


class NamedTool(StrictBody):
    """The one function that must be called."""

    type: Literal["function"]
    function: NamedFunction


class AllowedTools(StrictBody):
    """Some of ``tools``, of which one may (auto) or must (required) be called."""

    mode: Literal["auto", "required"]
    tools: list[NamedTool] = Field(min_length=1, max_length=MAX_TOOLS)


class AllowedToolsChoice(StrictBody):
    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


def _choice_tag(value: Any) -> str:
    if isinstance(value, dict):
        return "~allowed" if value.get("type") == "allowed_tools" else "~named"
    return "~mode"


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("~mode")]
    | Annotated[NamedTool, Tag("~named")]
    | Annotated[AllowedToolsChoice, Tag("~allowed")],
    Discriminator(_choice_tag),
]


def plain_tools(tools: list[Tool]) -> list[dict[str, Any]]:
    """As the renderer takes them. ``strict`` is the grammar's affair, not the model's."""
    return [
        {
            "type": "function",
            "function": tool.function.model_dump(exclude={"strict"}, exclude_none=True),
        }
        for tool in tools
    ]
