"""POST /tokenize and /detokenize: how this base reads and writes text. vLLM's bodies."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from fastapi import APIRouter

from server.answers.sampling import given
from server.answers.tokens import INLINE_CHARACTERS, check_ids, plain_encoder, tokenise
from server.deps import Infer, ServerDep
from server.resolve import find_fixed
from server.routes.openapi import ERRORS
from server.schemas.replies import Detokenized, Tokenized
from server.schemas.tokens import DetokenizeRequest, TokenizeRequest
from server.schemas.tools import plain_tools
from server.state import Server

router = APIRouter(tags=["tokens"])

_REFUSED: dict[int | str, dict[str, Any]] = {status: ERRORS[status] for status in (400, 404)}


@router.post("/tokenize", summary="Text or a chat as token ids", responses=_REFUSED)
async def tokenize(body: TokenizeRequest, server: ServerDep, caller: Infer) -> Tokenized:
    """What a completion's prompt or a chat's messages cost, and what the model sees of them."""
    await _check_model(server, body.model)
    tokens = list(await _ids(server, body))
    names = None
    if body.return_token_strs:
        names = [str(server.base.tokenizer.convert_ids_to_tokens(token)) for token in tokens]
    return Tokenized(
        count=len(tokens),
        max_model_len=server.engine.max_model_len,
        tokens=tokens,
        token_strs=names,
    )


@router.post("/detokenize", summary="Token ids as text", responses=_REFUSED)
async def detokenize(body: DetokenizeRequest, server: ServerDep, caller: Infer) -> Detokenized:
    """Special tokens are shown; ids that hold parts of a character show it once all are there."""
    await _check_model(server, body.model)
    check_ids(tuple(body.tokens), server.engine.vocab_size, "tokens")
    decode = partial(server.base.tokenizer.decode, body.tokens, skip_special_tokens=False)
    if len(body.tokens) <= INLINE_CHARACTERS:
        return Detokenized(prompt=str(decode()))
    return Detokenized(prompt=str(await asyncio.to_thread(decode)))


async def _ids(server: Server, body: TokenizeRequest) -> tuple[int, ...]:
    if body.prompt is not None:
        encode = plain_encoder(server.base.tokenizer, given(body.add_special_tokens, True))
        return await tokenise(len(body.prompt), encode, body.prompt)
    assert body.messages is not None
    messages = [message.plain() for message in body.messages]
    render = partial(
        server.renderer.render_prompt,
        tools=None if body.tools is None else plain_tools(body.tools),
        variables=given(body.chat_template_kwargs, {}),
        continues_last=given(body.continue_final_message, False),
    )
    return await tokenise(sum(len(each["content"]) for each in messages), render, messages)


async def _check_model(server: Server, model: str | None) -> None:
    """Raises UnknownModel."""
    if model is not None:
        await find_fixed(model, server.base.id, server.catalog)
