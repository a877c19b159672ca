"""POST /v1/completions."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Discriminator, Field, Tag

from server.fields import Text, neutral
from server.schemas.sampling import INT31, MAX_TOP_LOGPROBS, SamplingFields, TokenId

MAX_PROMPTS = 64


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
    """OpenAI's body, with vLLM's extensions."""

    prompt: Prompt = Field(examples=["Once upon a time"])
    max_tokens: int | None = Field(None, ge=1, lt=INT31)
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
