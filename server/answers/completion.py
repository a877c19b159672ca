"""What a plain completion asks for."""

from __future__ import annotations

from fastapi import Request

from server.answers.admission import Ticket
from server.answers.generation import Work, claim_places
from server.answers.sampling import given, num_choices, resolve, sampling_params
from server.answers.tokens import check_plausible, num_characters, text_ids, token_limit
from server.schemas.completion import CompletionRequest
from server.state import Server

DEFAULT_TOKENS = 16  # OpenAI's default for /v1/completions


async def completion_work(
    server: Server, request: Request, body: CompletionRequest, ticket: Ticket
) -> Work:
    """The work that a plain completion asks for. Raises as ``chat_work`` does."""
    num_each = num_choices(server, body, num_prompts=len(body.prompts))
    target, subject = await resolve(server, request, body)
    for text in body.prompts:
        if isinstance(text, str):
            await check_plausible(server, len(text), "prompt")
    length = sum(map(num_characters, body.prompts))
    num_answers = num_each * len(body.prompts)
    claim_places(server, ticket, target, num_answers, num_each * length)
    prompts = tuple([await text_ids(server, prompt, "prompt") for prompt in body.prompts])
    wanted = given(body.max_tokens, DEFAULT_TOKENS)
    for prompt in prompts:
        token_limit(server, len(prompt), wanted, param="prompt")
    return Work(
        target=target,
        prompts=prompts,
        sampling=sampling_params(server, body, wanted, body.logprobs),
        num_choices=num_each,
        subject=subject,
        received_at=request.state.received_at,
        id_prefix="cmpl",
        ticket=ticket,
        priority=body.priority or 0,
        cache_salt=body.cache_salt or "",
    )
