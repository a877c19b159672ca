"""What chat and plain completions share: how tokens are chosen, and when to stop."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from server.fields import OneOrMany, StrictBody, Text, neutral, refuse
from server.schemas.formats import StructuredOutputs

MAX_STOP = 4
MAX_STOP_LENGTH = 1000
MAX_STOP_TOKEN_IDS = 64
MAX_TOP_LOGPROBS = 20
MAX_BIASES = 1024
INT64 = 2**63
INT31 = 2**31

StopText = Annotated[Text, Field(min_length=1, max_length=MAX_STOP_LENGTH)]
StopTexts = Annotated[list[StopText], Field(max_length=MAX_STOP)]
TokenId = Annotated[int, Field(ge=0, lt=INT31)]
TokenName = Annotated[str, Field(pattern=r"^[0-9]{1,10}$")]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Bias = Annotated[float, Field(ge=-100, le=100)]
Metadata = Annotated[
    dict[Annotated[Text, Field(max_length=64)], Annotated[Text, Field(max_length=512)]],
    Field(max_length=16),
]


class StreamOptions(StrictBody):
    """Options of a streamed answer."""

    include_usage: bool | None = Field(
        None, description="a last chunk with the usage, null in the others"
    )
    include_obfuscation: Annotated[bool | None, neutral(False)] = None


class SamplingFields(StrictBody):
    """What both kinds of completions share."""

    model: Text = Field(
        min_length=1,
        max_length=512,
        examples=["loraloop-embedded"],
        description="the base, an adapter (name, name@3, name@alias), or what a job returned",
    )
    stream: bool | None = Field(None, description="server-sent events")
    stream_options: StreamOptions | None = Field(None, description="with stream: true only")
    temperature: float | None = Field(None, ge=0, le=2, description="1 if left out; 0 is greedy")
    top_p: float | None = Field(
        None, ge=0, le=1, description="1 if left out: keeps the likeliest tokens up to this mass"
    )
    top_k: int | None = Field(None, ge=-1, lt=INT31, description="0 or -1 keeps all")
    min_p: float | None = Field(
        None, ge=0, le=1, description="keeps tokens at least that likely beside the likeliest"
    )
    min_tokens: int | None = Field(
        None, ge=0, lt=INT31, description="before these no token ends the answer"
    )
    ignore_eos: bool | None = Field(None, description="the base's own ends do not end the answer")
    seed: int | None = Field(
        None,
        ge=-INT64,
        lt=INT64,
        description="the same seed draws the same answer; further choices count on from it",
    )
    stop: OneOrMany[StopText, StopTexts] | None = Field(
        None, description="texts that end the answer; they are not shown"
    )
    stop_token_ids: list[TokenId] | None = Field(
        None, max_length=MAX_STOP_TOKEN_IDS, description="token ids that end the answer"
    )
    n: int | None = Field(None, ge=1, description="answers to each prompt, at most LORALOOP_MAX_N")
    presence_penalty: float | None = Field(
        None, ge=-2, le=2, description="OpenAI's formula, over tokens of the answer"
    )
    frequency_penalty: float | None = Field(
        None, ge=-2, le=2, description="OpenAI's formula, over tokens of the answer"
    )
    repetition_penalty: float | None = Field(
        None, ge=0.01, le=2, description="divides positive logits of tokens seen, prompt included"
    )
    logit_bias: dict[TokenName, Bias] | None = Field(
        None, max_length=MAX_BIASES, description="added to the logits of token ids"
    )
    structured_outputs: StructuredOutputs | None = Field(
        None, description="the form of the answer; vLLM's constraints"
    )
    user: Text | None = Field(None, max_length=1024, description="keeps its arm of an experiment")
    metadata: Metadata | None = Field(None, description="notes of the client; changes nothing")
    priority: int | None = Field(
        None, ge=-INT31, lt=INT31, description="among a key's own waiting requests, lower first"
    )
    cache_salt: Text | None = Field(
        None,
        min_length=1,
        max_length=256,
        description="cached prefixes are shared among equal salts",
    )

    length_penalty: Annotated[float | None, neutral(1.0)] = None
    use_beam_search: Annotated[bool | None, neutral(False)] = None
    skip_special_tokens: Annotated[bool | None, neutral(True)] = None
    spaces_between_special_tokens: Annotated[bool | None, neutral(True)] = None
    include_stop_str_in_output: Annotated[bool | None, neutral(False)] = None

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
    def token_limit(self) -> int | None:
        """Tokens that an answer may have; None: no wish."""
        return None

    @property
    def has_usage_chunk(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage is True

    @property
    def biases(self) -> tuple[tuple[int, float], ...]:
        """``logit_bias`` as (token id, what is added)."""
        return tuple((int(token), bias) for token, bias in (self.logit_bias or {}).items())


class CompatibleFields(StrictBody):
    """OpenAI's fields that change nothing here, or are refused, wherever they are sent."""

    prompt_cache_key: Text | None = Field(None, description="a hint; changes nothing")
    prompt_cache_retention: Any = Field(None, description="a hint; changes nothing")
    prompt_cache_options: Annotated[Any, neutral()] = None
    safety_identifier: Text | None = Field(None, description="a hint; changes nothing")
    moderation: Annotated[Any, neutral()] = None
    service_tier: Annotated[Any, neutral("auto", "default")] = None
    verbosity: Annotated[Any, neutral("medium")] = None
