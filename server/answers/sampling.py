"""From a body's fields to the engine's parameters: what chat and plain completions share."""

from __future__ import annotations

from typing import TypeVar

from fastapi import Request

from server.engine.request import SamplingParams
from server.errors import ApiError
from server.resolve import Target, find_target
from server.schemas.sampling import SamplingFields
from server.state import Server

MIN_TEMPERATURE = 1e-3  # below, one token has all the probability and division overflows
MAX_SEQUENCES = 64  # prompts times n
SESSION_HEADER = "x-session-id"

T = TypeVar("T")


async def resolve(
    server: Server, request: Request, body: SamplingFields
) -> tuple[Target, str | None]:
    """What answers, and the subject whose arm of an experiment that is. Raises UnknownModel."""
    subject = body.user if body.user is not None else request.headers.get(SESSION_HEADER) or None
    live, experiments = server.catalog, server.experiments
    target = await find_target(body.model, subject, server.base.id, live, experiments)
    return target, subject


def num_choices(server: Server, body: SamplingFields, num_prompts: int) -> int:
    """``n``, if that many answers are allowed, and as long as they may be. Raises ApiError."""
    wanted = given(body.n, 1)
    most = min(server.settings.max_n, MAX_SEQUENCES // num_prompts)
    if wanted > most:
        message = f"Invalid value for n: {wanted}; at most {most} answers per request."
        raise ApiError(400, message, param="n", code="invalid_value")
    total, room = wanted * given(body.token_limit, 0), server.engine.kv_tokens
    if wanted > 1 and total > room:
        # They would only push each other out, again and again.
        message = (
            f"n × max_tokens is {wanted} × {body.token_limit} = {total}, and this server's cache "
            f"holds {room} tokens: ask for fewer or shorter answers."
        )
        raise ApiError(400, message, param="n", code="invalid_value")
    return wanted


def sampling_params(
    server: Server, body: SamplingFields, max_tokens: int, top_logprobs: int | None
) -> SamplingParams:
    """Everything but what a grammar, thoughts and the prompt's logprobs add. Raises ApiError."""
    min_tokens = given(body.min_tokens, 0)
    if min_tokens > max_tokens:
        message = f"min_tokens ({min_tokens}) is above the {max_tokens} tokens that may be made."
        raise ApiError(400, message, param="min_tokens", code="invalid_value")
    for token, _ in body.biases:
        if token >= server.engine.vocab_size:
            message = (
                f"Token id {token} in logit_bias is outside the vocabulary of "
                f"{server.engine.vocab_size}."
            )
            raise ApiError(400, message, param="logit_bias", code="invalid_value")
    temperature = given(body.temperature, 1.0)
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature if temperature >= MIN_TEMPERATURE else 0.0,
        top_p=given(body.top_p, 1.0),
        top_k=max(given(body.top_k, 0), 0),
        min_p=given(body.min_p, 0.0),
        presence_penalty=given(body.presence_penalty, 0.0),
        frequency_penalty=given(body.frequency_penalty, 0.0),
        repetition_penalty=given(body.repetition_penalty, 1.0),
        logit_bias=body.biases,
        min_tokens=min_tokens,
        ignore_eos=given(body.ignore_eos, False),
        stop=body.stop_strings,
        stop_token_ids=frozenset(body.stop_token_ids or ()),
        seed=body.seed,
        top_logprobs=top_logprobs,
    )


def given(value: T | None, default: T) -> T:
    """``value`` unless it is None: 0 and False are values."""
    return default if value is None else value
