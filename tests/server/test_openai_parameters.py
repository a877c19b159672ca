"""Whatever the official client's types can say is known: honoured, or refused by its name."""

from __future__ import annotations

from typing import Any

import openai.types.chat as chat
import pytest
from openai.types.chat import completion_create_params as chat_params
from openai.types.completion_create_params import CompletionCreateParamsStreaming
from openai.types.responses import response_create_params
from openai.types.responses.input_token_count_params import InputTokenCountParams
from openai.types.shared import ReasoningEffort
from openai.types.shared_params import FunctionDefinition
from openai.types.shared_params.response_format_json_schema import JSONSchema
from pydantic import BaseModel, TypeAdapter

from server.schemas.chat import ChatRequest
from server.schemas.completion import CompletionRequest
from server.schemas.formats import JsonSchema
from server.schemas.messages import Message, TextPart
from server.schemas.responses import InputTokensRequest, ResponsesRequest
from server.schemas.sampling import Effort, StreamOptions
from server.schemas.tools import Function, Tool

TYPES: list[tuple[Any, type[BaseModel]]] = [
    (chat_params.CompletionCreateParamsStreaming, ChatRequest),
    (CompletionCreateParamsStreaming, CompletionRequest),
    (response_create_params.ResponseCreateParamsStreaming, ResponsesRequest),
    (InputTokenCountParams, InputTokensRequest),
    (chat.ChatCompletionSystemMessageParam, Message),
    (chat.ChatCompletionDeveloperMessageParam, Message),
    (chat.ChatCompletionUserMessageParam, Message),
    (chat.ChatCompletionAssistantMessageParam, Message),
    (chat.ChatCompletionToolMessageParam, Message),
    (chat.ChatCompletionContentPartTextParam, TextPart),
    (chat.ChatCompletionFunctionToolParam, Tool),
    (chat.ChatCompletionStreamOptionsParam, StreamOptions),
    (FunctionDefinition, Function),
    (JSONSchema, JsonSchema),
]


@pytest.mark.parametrize(("theirs", "ours"), TYPES)
def test_no_field_of_openais_is_unknown(theirs: Any, ours: type[BaseModel]) -> None:
    known = {field.alias or name for name, field in ours.model_fields.items()}
    assert set(theirs.__required_keys__ | theirs.__optional_keys__) - known == set()


def test_every_word_of_reasoning_effort_is_known() -> None:
    words = TypeAdapter[Any](ReasoningEffort).json_schema()["anyOf"][0]["enum"]
    assert set(words) == set(TypeAdapter[Any](Effort).json_schema()["enum"])
