"""From a validated body to work for the engine: tokens, sampling, and whether they fit.

Everything that depends on the base happens here, before anything is accepted. Long texts are
tokenised in a thread, so that they hold up no other stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from fastapi import Request

from server.answers.admission import CHARACTERS_PER_TOKEN, Ticket
from server.answers.generation import Work, claim_places
from server.answers.schemas import ChatRequest, CompletionRequest, SamplingFields
from server.engine.request import SamplingParams
from server.errors import ApiError
from server.resolve import Target, find_target
from server.state import Server

INLINE_CHARACTERS = 4_000  # about 1 ms of tokenising; a thread costs a tenth of that
PLAUSIBLE_TOKEN_LENGTH = 16  # characters; below, no prompt is suspected of being too long
DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's default for /v1/completions
MIN_TEMPERATURE = 1e-3  # below, one token has all the probability and division overflows
MAX_SEQUENCES = 64  # prompts times n
SESSION_HEADER = "x-session-id"

PromptIds = tuple[int, ...]
T = TypeVar("T")


async def chat_work(server: Server, request: Request, body: ChatRequest, ticket: Ticket) -> Work:
    """The work that a chat request asks for.

    Raises:
        ApiError, InvalidChat, UnknownModel: it asks for what cannot be.
        EngineOverloaded, EngineClosed: not now.
    """
    num_choices = _num_choices(server, body, num_prompts=1)
    target, subject = await _resolve(server, request, body)
    messages = [message.plain() for message in body.messages]
    length = sum(len(message["content"]) for message in messages)
    await _check_plausible(server, length, "messages")
    claim_places(server, ticket, target, num_choices, num_choices * length)
    prompt = tuple(await _tokenise(length, server.renderer.render_prompt, messages))
    limit = _token_limit(server, len(prompt), body.token_limit, param="messages")
    sampling = _sampling(body, limit, body.num_top_logprobs)
    received_at = request.state.received_at
    prefix = "chatcmpl"
    return Work(target, (prompt,), sampling, num_choices, subject, received_at, prefix, ticket)


async def completion_work(
    server: Server, request: Request, body: CompletionRequest, ticket: Ticket
) -> Work:
    """The work that a plain completion asks for. Raises as ``chat_work`` does."""
    num_choices = _num_choices(server, body, num_prompts=len(body.prompts))
    target, subject = await _resolve(server, request, body)
    for text in body.prompts:
        if isinstance(text, str):
            await _check_plausible(server, len(text), "prompt")
    length = sum(map(_num_characters, body.prompts))
    num_answers = num_choices * len(body.prompts)
    claim_places(server, ticket, target, num_answers, num_choices * length)
    prompts = tuple([await _prompt_ids(server, prompt) for prompt in body.prompts])
    wanted = DEFAULT_COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
    for prompt in prompts:
        _token_limit(server, len(prompt), wanted, param="prompt")
    sampling = _sampling(body, wanted, body.logprobs)
    received_at = request.state.received_at
    return Work(target, prompts, sampling, num_choices, subject, received_at, "cmpl", ticket)


async def _resolve(
    server: Server, request: Request, body: SamplingFields
) -> tuple[Target, str | None]:
    subject = body.user if body.user is not None else request.headers.get(SESSION_HEADER) or None
    live, experiments = server.catalog, server.experiments
    target = await find_target(body.model, subject, server.base.id, live, experiments)
    return target, subject


def _num_choices(server: Server, body: SamplingFields, num_prompts: int) -> int:
    num_choices = 1 if body.n is None else body.n
    most = min(server.settings.max_n, MAX_SEQUENCES // num_prompts)
    if num_choices > most:
        message = f"Invalid value for n: {num_choices}; at most {most} answers per request."
        raise ApiError(400, message, param="n", code="invalid_value")
    return num_choices


async def _prompt_ids(server: Server, prompt: str | list[int]) -> PromptIds:
    if isinstance(prompt, str):
        # With the special tokens that the base expects around plain text, such as its BOS.
        ids = tuple(await _tokenise(len(prompt), _plain_encoder(server.base.tokenizer), prompt))
    else:
        ids = tuple(prompt)
        _check_ids(ids, server.engine.vocab_size)
    if not ids:
        message = "The prompt is empty: it has no token to continue."
        raise ApiError(400, message, param="prompt", code="invalid_value")
    return ids


def _num_characters(prompt: str | list[int]) -> int:
    """Of the text, or as many as that many tokens have about."""
    return len(prompt) if isinstance(prompt, str) else CHARACTERS_PER_TOKEN * len(prompt)


def _plain_encoder(tokenizer: Any) -> Callable[[str], list[int]]:
    """Not ``tokenizer(text)``: that sets options on the backend which other threads decode with."""
    if not tokenizer.is_fast:
        return lambda text: list(tokenizer.encode(text))
    # The batch call lets other threads run meanwhile, the single one does not (tokenizers 0.23).
    return lambda text: list(tokenizer.backend_tokenizer.encode_batch_fast([text])[0].ids)


def _check_ids(ids: PromptIds, vocab_size: int) -> None:
    if ids and max(ids) >= vocab_size:
        message = f"Token id {max(ids)} in prompt is outside the vocabulary of {vocab_size}."
        raise ApiError(400, message, param="prompt", code="invalid_value")


async def _tokenise(num_characters: int, tokenise: Any, text: Any) -> list[int]:
    if num_characters <= INLINE_CHARACTERS:
        ids: list[int] = tokenise(text)
        return ids
    return await asyncio.to_thread(tokenise, text)


async def _check_plausible(server: Server, num_characters: int, param: str) -> None:
    """Refuse text that cannot fit however it is tokenised, for the price of counting it."""
    context = server.engine.max_model_len
    if num_characters <= PLAUSIBLE_TOKEN_LENGTH * context:
        return
    longest = await asyncio.to_thread(lambda: server.longest_token)
    if num_characters > longest * context:
        raise _too_long(context, f"at least {num_characters // longest + 1}", None, param)


def _token_limit(server: Server, num_prompt: int, wanted: int | None, *, param: str) -> int:
    """How many tokens may be generated; without a wish, what is left of the context."""
    context = server.engine.max_model_len
    if num_prompt + (1 if wanted is None else wanted) <= context:
        return context - num_prompt if wanted is None else wanted
    raise _too_long(context, str(num_prompt), wanted, param)


def _too_long(context: int, num_prompt: str, wanted: int | None, param: str) -> ApiError:
    noun = "messages have" if param == "messages" else "prompt has"
    asked = "" if wanted is None else f" and max_tokens asks for {wanted} more"
    return ApiError(
        400,
        f"This model's maximum context length is {context} tokens, but the {noun} {num_prompt} "
        f"tokens{asked}. Shorten {'it' if wanted is None else 'one of them'}.",
        param=param,
        code="context_length_exceeded",
    )


def _sampling(body: SamplingFields, max_tokens: int, top_logprobs: int | None) -> SamplingParams:
    min_tokens = _given(body.min_tokens, 0)
    if min_tokens > max_tokens:
        message = f"min_tokens ({min_tokens}) is above the {max_tokens} tokens that may be made."
        raise ApiError(400, message, param="min_tokens", code="invalid_value")
    temperature = _given(body.temperature, 1.0)
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature if temperature >= MIN_TEMPERATURE else 0.0,
        top_p=_given(body.top_p, 1.0),
        top_k=max(_given(body.top_k, 0), 0),
        min_p=_given(body.min_p, 0.0),
        presence_penalty=_given(body.presence_penalty, 0.0),
        frequency_penalty=_given(body.frequency_penalty, 0.0),
        min_tokens=min_tokens,
        ignore_eos=_given(body.ignore_eos, False),
        stop=body.stop_strings,
        stop_token_ids=frozenset(body.stop_token_ids or ()),
        seed=body.seed,
        top_logprobs=top_logprobs,
    )


def _given(value: T | None, default: T) -> T:
    """``value`` unless it is None: 0 and False are values."""
    return default if value is None else value
