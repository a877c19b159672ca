"""Answers of the smaller routes."""

from __future__ import annotations

from pydantic import BaseModel, Field


class Tokenized(BaseModel):
    """How a text reads in tokens."""

    count: int = Field(examples=[4])
    max_model_len: int = Field(description="tokens of prompt and answer together", examples=[1024])
    tokens: list[int] = Field(examples=[[10, 20, 30, 40]])
    token_strs: list[str] | None = Field(
        None, description="the vocabulary's entries, where return_token_strs asks for them"
    )


class Detokenized(BaseModel):
    """The text of token ids."""

    prompt: str = Field(examples=["Where is my order?"])
