"""What a chat request asks for: everything that depends on the base happens here, before anything
is accepted."""

from __future__ import annotations

from fastapi import Request

from server.answers.admission import Ticket
from server.answers.generation import Work, claim_places
from server.answers.grammars.constraint import format_constraint
from server.answers.sampling import num_choices, resolve, sampling_params
from server.answers.tokens import check_plausible, token_limit, tokenise
from server.schemas.chat import ChatRequest
from server.state import Server


async def chat_work(server: Server, request: Request, body: ChatRequest, ticket: Ticket) -> Work:
    """The work that a chat request asks for.

    Raises:
        ApiError, InvalidChat, UnknownModel: it asks for what cannot be.
        EngineOverloaded, EngineClosed: not now.
    """
    num_answers = num_choices(server, body, num_prompts=1)
    constraint = format_constraint(body.response_format, body.structured_outputs)
    target, subject = await resolve(server, request, body)
    messages = [message.plain() for message in body.messages]
    length = sum(len(message["content"]) for message in messages)
    await check_plausible(server, length, "messages")
    claim_places(server, ticket, target, num_answers, num_answers * length)
    prompt = await tokenise(length, server.renderer.render_prompt, messages)
    limit = token_limit(server, len(prompt), body.token_limit, param="messages")
    sampling = sampling_params(server, body, limit, body.num_top_logprobs)
    return Work(
        target=target,
        prompts=(prompt,),
        sampling=await server.grammars.constrain(sampling, constraint),
        num_choices=num_answers,
        subject=subject,
        received_at=request.state.received_at,
        id_prefix="chatcmpl-",
        ticket=ticket,
        priority=body.priority or 0,
        cache_salt=body.cache_salt or "",
    )
