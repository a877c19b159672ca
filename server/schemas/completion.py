"""POST /v1/completions."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from server.fields import Text, neutral, refuse
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

    prompt: Prompt = Field(
        description="a text, several, token ids, or several lists of them",
        examples=["Once upon a time"],
    )
    max_tokens: int | None = Field(
        None, ge=0, lt=INT31, description="16 if left out; 0 with echo only scores the prompt"
    )
    logprobs: int | None = Field(
        None,
        ge=0,
        le=MAX_TOP_LOGPROBS,
        description="likeliest tokens shown beside each, with echo of the prompt's tokens too",
    )
    echo: bool | None = Field(None, description="the answer begins with the prompt")
    add_special_tokens: bool | None = Field(
        None, description="false: no BOS in front of a text, where the base writes one"
    )

    best_of: Annotated[int | None, neutral(1, because="send n, and choose yourself")] = None
    suffix: Annotated[Any, neutral("", because="the base was not trained to fill in")] = None
    prompt_logprobs: Annotated[Any, neutral(because="echo with logprobs shows them")] = None
    truncate_prompt_tokens: Annotated[Any, neutral(because="cut the prompt before")] = None

    @model_validator(mode="after")
    def _check_completion(self) -> CompletionRequest:
        if self.max_tokens == 0 and not self.echo:
            message = "max_tokens 0 makes nothing: it needs echo: true, to score the prompt."
            raise refuse("invalid_combination", message, "max_tokens")
        return self

    @property
    def token_limit(self) -> int | None:
        return self.max_tokens

    @property
    def is_scoring(self) -> bool:
        """Nothing is to be generated."""
        return self.max_tokens == 0

    @property
    def num_prompt_logprobs(self) -> int | None:
        """As the engine wants it: None for no logprobs of the prompt."""
        return self.logprobs if self.echo else None

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        """``prompt`` as a list of texts or of token id lists."""
        shaped: Any = self.prompt  # after validation never a flat list of ids
        return shaped if isinstance(shaped, list) else [shaped]
