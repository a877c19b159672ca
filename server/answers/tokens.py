"""From texts to token ids, and whether they fit.

Long texts are tokenised in a thread, so that they hold up no other stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from server.answers.admission import CHARACTERS_PER_TOKEN
from server.errors import ApiError
from server.state import Server

INLINE_CHARACTERS = 4_000  # about 1 ms of tokenising; a thread costs a tenth of that
PLAUSIBLE_TOKEN_LENGTH = 16  # characters; below, no prompt is suspected of being too long

PromptIds = tuple[int, ...]


async def tokenise(num_characters: int, encode: Callable[..., list[int]], *texts: Any) -> PromptIds:
    """``encode(*texts)``, in a thread if the texts are long."""
    if num_characters <= INLINE_CHARACTERS:
        return tuple(encode(*texts))
    return tuple(await asyncio.to_thread(encode, *texts))


async def text_ids(
    server: Server, prompt: str | list[int], param: str, *, adds_special: bool = True
) -> PromptIds:
    """The ids of a plain text, or the ids that were sent. Raises ApiError that names ``param``.

    ``adds_special``: with the tokens that the base expects around plain text, such as its BOS.
    """
    if isinstance(prompt, str):
        encode = plain_encoder(server.base.tokenizer, adds_special)
        ids = await tokenise(len(prompt), encode, prompt)
    else:
        ids = tuple(prompt)
        check_ids(ids, server.engine.vocab_size, param)
    if not ids:
        message = f"The {param} is empty: it has no token to continue."
        raise ApiError(400, message, param=param, code="invalid_value")
    return ids


def num_characters(prompt: str | list[int]) -> int:
    """Of the text, or as many as that many tokens have about."""
    return len(prompt) if isinstance(prompt, str) else CHARACTERS_PER_TOKEN * len(prompt)


def plain_encoder(tokenizer: Any, adds_special: bool) -> Callable[[str], list[int]]:
    """Not ``tokenizer(text)``: that sets options on the backend which other threads decode with."""
    if not tokenizer.is_fast:
        return lambda text: list(tokenizer.encode(text, add_special_tokens=adds_special))
    # The batch call lets other threads run meanwhile, the single one does not (tokenizers 0.23).
    encode = partial(tokenizer.backend_tokenizer.encode_batch_fast, add_special_tokens=adds_special)
    return lambda text: list(encode([text])[0].ids)


def check_ids(ids: PromptIds, vocab_size: int, param: str) -> None:
    if ids and max(ids) >= vocab_size:
        message = f"Token id {max(ids)} in {param} is outside the vocabulary of {vocab_size}."
        raise ApiError(400, message, param=param, code="invalid_value")


async def check_plausible(server: Server, length: int, param: str) -> None:
    """Refuse ``length`` characters that cannot fit however they are tokenised, for the price of
    counting them."""
    context = server.engine.max_model_len
    if length <= PLAUSIBLE_TOKEN_LENGTH * context:
        return
    longest = await asyncio.to_thread(lambda: server.longest_token)
    if length > longest * context:
        raise _too_long(context, f"at least {length // longest + 1}", None, param)


def token_limit(server: Server, num_prompt: int, wanted: int | None, *, param: str) -> int:
    """How many tokens may be generated; without a wish, what is left of the context."""
    context = server.engine.max_model_len
    if num_prompt + (1 if wanted is None else wanted) <= context:
        return context - num_prompt if wanted is None else wanted
    raise _too_long(context, str(num_prompt), wanted, param)


def _too_long(context: int, num_prompt: str, wanted: int | None, param: str) -> ApiError:
    noun = "messages have" if param == "messages" else f"{param} has"
    asked = "" if wanted is None else f" and max_tokens asks for {wanted} more"
    return ApiError(
        400,
        f"This model's maximum context length is {context} tokens, but the {noun} {num_prompt} "
        f"tokens{asked}. Shorten {'it' if wanted is None else 'one of them'}.",
        param=param,
        code="context_length_exceeded",
    )
