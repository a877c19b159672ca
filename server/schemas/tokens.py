"""POST /tokenize and POST /detokenize, as vLLM has them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from server.fields import StrictBody, Text, neutral, refuse
from server.json_values import JsonObject
from server.schemas.chat import MAX_MESSAGES
from server.schemas.messages import Messages
from server.schemas.sampling import TokenId
from server.schemas.tools import MAX_TOOLS, Tool

MAX_TOKENS = 1_000_000
_OF_CHATS = ("add_generation_prompt", "continue_final_message", "tools", "chat_template_kwargs")

ModelId = Annotated[Text, Field(min_length=1, max_length=512)]


class TokenizeRequest(StrictBody):
    """Either ``prompt``, a plain text, or ``messages``, which the base's chat template renders."""

    model: ModelId | None = Field(
        None, description="any: all share the base", examples=["loraloop-embedded"]
    )
    prompt: Text | None = Field(None, description="a plain text", examples=["Where is my order?"])
    messages: Messages | None = Field(
        None, min_length=1, max_length=MAX_MESSAGES, description="a chat, as in a completion"
    )
    add_special_tokens: bool | None = Field(
        None, description="of a prompt, true if left out: with the BOS, where the base writes one"
    )
    return_token_strs: bool | None = Field(None, description="the vocabulary's entries too")
    add_generation_prompt: bool | None = Field(
        None, description="false goes with continue_final_message only"
    )
    continue_final_message: bool | None = Field(
        None, description="up to where the last message stops"
    )
    tools: list[Tool] | None = Field(
        None, max_length=MAX_TOOLS, description="that the template is to show"
    )
    chat_template_kwargs: JsonObject | None = Field(
        None, description="variables for the base's chat template"
    )
    chat_template: Annotated[Any, neutral(because="the base's own template is used")] = None
    mm_processor_kwargs: Annotated[Any, neutral(because="this model reads text only")] = None

    @model_validator(mode="after")
    def _check_form(self) -> TokenizeRequest:
        if (self.prompt is None) == (self.messages is None):
            raise refuse("invalid_combination", "Give either prompt or messages.", "prompt")
        if self.prompt is not None:
            for name in _OF_CHATS:
                if getattr(self, name) is not None:
                    message = f"{name} goes with messages, not with prompt."
                    raise refuse("invalid_combination", message, name)
        elif self.add_special_tokens:
            message = "add_special_tokens goes with prompt: a chat template writes its own."
            raise refuse("invalid_combination", message, "add_special_tokens")
        is_open = self.add_generation_prompt is not False
        if self.messages is not None and is_open == bool(self.continue_final_message):
            if is_open and self.add_generation_prompt is None:
                return self  # not said otherwise
            message = "One of add_generation_prompt and continue_final_message must be true."
            raise refuse("invalid_combination", message, "add_generation_prompt")
        return self


class DetokenizeRequest(StrictBody):
    """Token ids back to text, special tokens shown."""

    model: ModelId | None = Field(
        None, description="any: all share the base", examples=["loraloop-embedded"]
    )
    tokens: list[TokenId] = Field(
        max_length=MAX_TOKENS, description="token ids", examples=[[10, 20, 30]]
    )
