"""What a chat request asks for: everything that depends on the base happens here, before anything
is accepted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from fastapi import Request

from artifacts.chat_messages import strings_of
from server.answers.admission import Ticket
from server.answers.generation import Work, claim_places
from server.answers.grammars.constraint import Constraint, format_constraint
from server.answers.pieces import AnswerParser, ParserFactory, PlainParser
from server.answers.reasoning import ThoughtParser, thinking, thinking_budget
from server.answers.sampling import num_choices, resolve, sampling_params
from server.answers.tokens import check_plausible, token_limit, tokenise
from server.answers.tools.choice import Offer, offer
from server.answers.tools.constraint import answer_constraint, is_certain
from server.answers.tools.conversation import check_calls
from server.answers.tools.formats import ToolFormat
from server.answers.tools.parser import CallParser
from server.errors import ApiError
from server.schemas.chat import ChatRequest
from server.schemas.tools import Tool, plain_tools
from server.state import Server


async def chat_work(server: Server, request: Request, body: ChatRequest, ticket: Ticket) -> Work:
    """The work that a chat request asks for.

    Raises:
        ApiError, InvalidChat, UnknownModel: it asks for what cannot be.
        EngineOverloaded, EngineClosed: not now.
    """
    num_answers = num_choices(server, body, num_prompts=1)
    check_calls(body.messages)
    marks = server.thought_marks
    budget = thinking_budget(marks, body.reasoning_effort, body.thinking_token_budget)
    wanted = format_constraint(body.response_format, body.structured_outputs)
    calls = _calls(server, body, wanted)
    target, subject = await resolve(server, request, body)
    messages = _messages(server, body)
    length = _num_characters(messages, body.tools)
    await check_plausible(server, length, "messages")
    claim_places(server, ticket, target, num_answers, num_answers * length)
    prompt = await tokenise(length, _renderer(server, body), messages)
    limit = token_limit(server, len(prompt), body.token_limit, param="messages")
    thoughts = thinking(marks, prompt, budget)
    sampling = replace(
        sampling_params(server, body, limit, body.num_top_logprobs), thinking=thoughts
    )
    return Work(
        target=target,
        prompts=(prompt,),
        sampling=await server.grammars.constrain(sampling, calls.constraint),
        num_choices=num_answers,
        subject=subject,
        received_at=request.state.received_at,
        id_prefix="chatcmpl-",
        ticket=ticket,
        priority=body.priority or 0,
        cache_salt=body.cache_salt or "",
        parser=calls.parser
        if thoughts is None
        else lambda: ThoughtParser(calls.parser(), is_open=thoughts.is_open),
    )


@dataclass(frozen=True, slots=True)
class _Calls:
    """What the answer is held to, and how it is read."""

    constraint: Constraint | None
    parser: ParserFactory = PlainParser


def _calls(server: Server, body: ChatRequest, wanted: Constraint | None) -> _Calls:
    offered = offer(body.tools, body.tool_choice, body.parallel_tool_calls)
    if offered is None:
        return _Calls(wanted)
    form = server.tool_format
    if form is None:
        message = (
            "The chat template of this base writes calls of functions in no form that this server "
            "reads; leave tools out."
        )
        raise ApiError(400, message, param="tools", code="unsupported_parameter")
    constraint = answer_constraint(form, offered, wanted, server.grammars.literal)
    if not offered.callable:
        return _Calls(constraint)
    has_format = wanted is not None
    return _Calls(constraint, lambda: _call_parser(form, offered, has_format))


def _call_parser(form: ToolFormat, offered: Offer, has_format: bool) -> AnswerParser:
    """``finish_reason`` is "stop" where the client chose the function, as in OpenAI's answers."""
    return CallParser(
        form.reading,
        offered.names,
        is_certain=is_certain(form, offered, has_format),
        word="stop" if offered.is_named else "tool_calls",
    )


def _messages(server: Server, body: ChatRequest) -> list[dict[str, Any]]:
    """For the renderer. Clients send thoughts back as they came; R1's templates, which do not know
    the field, leave them out of what they know, so that they are left out here."""
    messages = [message.plain() for message in body.messages]
    has_thoughts = any("reasoning_content" in message for message in messages)
    if has_thoughts and server.thought_marks and not server.renderer.shows_reasoning:
        for message in messages:
            message.pop("reasoning_content", None)
    return messages


def _renderer(server: Server, body: ChatRequest) -> partial[list[int]]:
    return partial(
        server.renderer.render_prompt,
        tools=plain_tools(body.tools) if body.tools else None,
        variables=body.chat_template_kwargs or {},
        continues_last=body.continue_final_message is True,
    )


def _num_characters(messages: Sequence[dict[str, Any]], tools: Sequence[Tool] | None) -> int:
    """Of everything that the model reads, roles and the template's own text left out."""
    said = [message.get(key) for message in messages for key in _SAID]
    shown = plain_tools(list(tools)) if tools else []
    return sum(len(text) for text in strings_of([said, shown]))


_SAID = ("content", "reasoning_content", "tool_calls", "name")
