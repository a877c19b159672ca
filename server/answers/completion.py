"""What a plain completion asks for."""

from __future__ import annotations

from dataclasses import replace

from fastapi import Request

from server.answers.admission import Ticket
from server.answers.completion_wire import CompletionWire, Echo
from server.answers.generation import Work, claim_places
from server.answers.grammars.constraint import format_constraint
from server.answers.sampling import given, num_choices, resolve, sampling_params
from server.answers.streaming import Form
from server.answers.tokens import check_plausible, num_characters, text_ids, token_limit
from server.schemas.completion import CompletionRequest
from server.state import Server

DEFAULT_TOKENS = 16  # OpenAI's default for /v1/completions


async def completion_work(
    server: Server, request: Request, body: CompletionRequest, ticket: Ticket
) -> Work:
    """The work that a plain completion asks for. Raises as ``chat_work`` does."""
    num_each = num_choices(server, body, num_prompts=len(body.prompts))
    constraint = format_constraint(None, body.structured_outputs)
    target, subject = await resolve(server, request, body)
    for text in body.prompts:
        if isinstance(text, str):
            await check_plausible(server, len(text), "prompt")
    length = sum(map(num_characters, body.prompts))
    num_answers = num_each * len(body.prompts)
    claim_places(server, ticket, target, num_answers, num_each * length)
    adds_special = given(body.add_special_tokens, True)
    prompts = tuple(
        [
            await text_ids(server, prompt, "prompt", adds_special=adds_special)
            for prompt in body.prompts
        ]
    )
    wanted = max(given(body.max_tokens, DEFAULT_TOKENS), 1)  # of a scored prompt, not shown
    for prompt in prompts:
        token_limit(server, len(prompt), wanted, param="prompt")
    sampling = sampling_params(server, body, wanted, body.logprobs)
    sampling = await server.grammars.constrain(sampling, constraint)
    return Work(
        target=target,
        prompts=prompts,
        sampling=replace(sampling, prompt_logprobs=body.num_prompt_logprobs),
        num_choices=num_each,
        subject=subject,
        received_at=request.state.received_at,
        id_prefix="cmpl-",
        ticket=ticket,
        priority=body.priority or 0,
        cache_salt=body.cache_salt or "",
        is_scoring=body.is_scoring,
    )


def completion_form(server: Server, body: CompletionRequest, work: Work) -> Form:
    """How the answer to ``work`` is written."""
    echo: tuple[Echo, ...] = ()
    if body.echo:
        texts = [_text(server, prompt) for prompt in body.prompts]
        echo = tuple(map(Echo, texts, [ids[0] for ids in work.prompts]))
    tokens = None if body.logprobs is None else server.token_text
    # Whoever scores a prompt counts on a logprob for each token, the one that ends it too.
    ends = server.base.eos_token_ids | work.sampling.stop_token_ids
    return Form(
        CompletionWire(tokens, echo, work.num_choices),
        frozenset() if echo else ends,
        bool(body.stream),
        body.has_usage_chunk,
    )


def _text(server: Server, prompt: str | list[int]) -> str:
    """The text that is echoed; of token ids, all of them, special ones too."""
    if isinstance(prompt, str):
        return prompt
    return str(server.base.tokenizer.decode(prompt, skip_special_tokens=False))
