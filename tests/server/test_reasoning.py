"""Thoughts in chats: told from what is said, streamed, limited, refused where a base has none."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artifacts.base import EMBEDDED_BASE, open_tokenizer
from artifacts.chat import ChatRenderer
from server.answers.pieces import CallBegun, Piece, PlainParser, Said, Thought
from server.answers.reasoning import EFFORTS, ThoughtParser, find_marks
from server.answers.tools.parser import CallParser
from server.state import Server
from tests.server.fakes import FIRST_ID, FakeBase, FakeEngine
from tests.server.test_tool_parser import form_of
from tests.server.tool_templates import HERMES, QWEN3, R1, tokenizer_with

URL = "/v1/chat/completions"
USER = {"role": "user", "content": "q"}
HELLO: dict[str, Any] = {"model": "tiny-base", "messages": [USER]}
EOS = 2  # of the embedded tokenizer

Use = Callable[[str], ChatRenderer]


@pytest.fixture
def use(fake_server: Server, engine: FakeEngine) -> Use:
    """Puts a template under the fake engine."""

    def put(template: str) -> ChatRenderer:
        tokenizer = tokenizer_with(template)
        base = replace(FakeBase(), tokenizer=tokenizer, eos_token_ids=frozenset({EOS}))
        fake_server.base = cast(Any, base)
        fake_server.renderer = ChatRenderer(tokenizer)
        vars(fake_server).pop("thought_marks", None)  # of the template before
        engine.vocab_size, engine.max_model_len = 6144, 2048
        return fake_server.renderer

    return put


def say(engine: FakeEngine, *texts: str) -> None:
    engine.script.texts = texts
    engine.script.tokens = (FIRST_ID,) * len(texts)


def split(parts: list[str], *, is_open: bool, reason: str = "stop") -> tuple[str, str]:
    """(thoughts, what is said)"""
    parser = ThoughtParser(PlainParser(), is_open=is_open)
    pieces: list[Piece] = [piece for part in parts for piece in parser.push(part)]
    pieces += parser.finish(reason)
    thoughts = [piece.text for piece in pieces if isinstance(piece, Thought)]
    said = [piece.text for piece in pieces if isinstance(piece, Said)]
    assert pieces == [*map(Thought, thoughts), *map(Said, said)]  # in this order
    return "".join(thoughts), "".join(said)


SPLITS = [
    # the prompt ends inside thoughts: R1
    (True, "I think.\n</think>\n\nHello", "I think.", "Hello"),
    (True, "<think>\nI think.\n</think>\n\nHello", "I think.", "Hello"),
    (True, "\n\n</think>Hello", "", "Hello"),
    (True, "cut off\n", "cut off", ""),
    (True, "cut off</thi", "cut off</thi", ""),
    (True, "<thi", "<thi", ""),
    (True, "a </b> < /think> c</think>", "a </b> < /think> c", ""),
    # the model begins them: Qwen3
    (False, "<think>\na\n\nb\n</think>\n\nHello\n", "a\n\nb", "Hello\n"),
    (False, "<think></think>Hello", "", "Hello"),
    (False, "<think>\n", "", ""),
    (False, "<thin", "", "<thin"),
    # none
    (False, "Hello", "", "Hello"),
    (False, "\n\nHello </think>", "", "\n\nHello </think>"),
    (False, "The mark <think> begins thoughts.", "", "The mark <think> begins thoughts."),
]


@pytest.mark.parametrize(("is_open", "text", "thoughts", "said"), SPLITS)
def test_thoughts_are_told_from_what_is_said(
    is_open: bool, text: str, thoughts: str, said: str
) -> None:
    for parts in ([text], list(text), [text[:9], text[9:]]):
        assert split(parts, is_open=is_open) == (thoughts, said)


FRAGMENTS = [
    "<think>",
    "</think>",
    "<",
    "/",
    "think>",
    "</",
    "\n",
    "\r\n",
    " ",
    "a",
    "你",
    "</thin",
]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(FRAGMENTS), max_size=10), st.booleans(), st.data())
def test_thoughts_do_not_depend_on_where_the_text_is_cut(
    fragments: list[str], is_open: bool, data: st.DataObject
) -> None:
    text = "".join(fragments)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    thoughts, said = split(parts, is_open=is_open)
    assert (thoughts, said) == split([text], is_open=is_open)
    kept = text.removeprefix("<think>")
    kept = kept.replace("</think>", "", 1) if is_open or kept != text else kept
    assert bare(thoughts + said) == bare(kept)


def bare(text: str) -> str:
    return text.replace("\n", "").replace("\r", "")


def test_calls_count_outside_thoughts_only() -> None:
    call = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    inner = CallParser(form_of("hermes").reading, {"f"}, is_certain=True)
    parser = ThoughtParser(inner, is_open=True)
    pieces = parser.push(f"Perhaps {call}?\n</think>\n\n{call}") + parser.finish("stop")
    assert pieces[0] == Thought(f"Perhaps {call}?")
    assert isinstance(pieces[1], CallBegun)
    assert parser.finish_reason("stop") == "tool_calls"


def test_which_bases_think() -> None:
    embedded = open_tokenizer(EMBEDDED_BASE)
    marks = find_marks(embedded, {EOS})
    assert marks is not None
    assert [marks.start_id, marks.end_id] == embedded.convert_tokens_to_ids(["<think>", "</think>"])
    assert find_marks(tokenizer_with(HERMES), {EOS}) is None  # a template without thoughts
    apart = tokenizer_with(QWEN3)
    text = apart.backend_tokenizer.to_str().replace("</think>", "</thin>")
    apart = type(apart)(tokenizer_object=type(apart.backend_tokenizer).from_str(text))
    apart.chat_template = QWEN3
    assert find_marks(apart, {EOS}) is None  # marks that are several tokens


@pytest.mark.parametrize(
    ("prompt", "is_open"),
    [([4, 7], True), ([4, 7, 9, 8, 4], False), ([4], False), ([7, 9, EOS, 4], False), ([], False)],
)
def test_a_prompt_ends_inside_thoughts_of_this_turn(prompt: list[int], is_open: bool) -> None:
    marks = find_marks(open_tokenizer(EMBEDDED_BASE), {EOS})
    assert marks is not None
    assert marks.is_open(prompt) is is_open


SWITCHED_OFF = {"chat_template_kwargs": {"enable_thinking": False}}
# template, fields, what the engine says, (thoughts, what is said)
HTTP_CASES: list[tuple[str, dict[str, Any], tuple[str, ...], tuple[str, str]]] = [
    (R1, {}, ("I ", "think", "\n</th", "ink>\n", "\nHello"), ("I think", "Hello")),
    (QWEN3, {}, ("<think>", "\nI think", "\n</think>", "\n\nHello"), ("I think", "Hello")),
    (QWEN3, SWITCHED_OFF, ("Hello </think>",), ("", "Hello </think>")),
    (HERMES, {}, ("<think>a</think>b",), ("", "<think>a</think>b")),
]


@pytest.mark.parametrize("case", HTTP_CASES)
async def test_thoughts_of_a_whole_and_a_streamed_answer(
    web: httpx.AsyncClient, engine: FakeEngine, use: Use, case: Any
) -> None:
    template, fields, texts, (thoughts, said) = case
    use(template)
    say(engine, *texts)
    whole = (await web.post(URL, json={**HELLO, **fields})).json()["choices"][0]["message"]
    assert whole.get("reasoning_content", "") == thoughts
    assert whole["content"] == said
    text = (await web.post(URL, json={**HELLO, **fields, "stream": True})).text
    events = [json.loads(block[6:]) for block in text.split("\n\n")[:-2]]
    deltas = [event["choices"][0]["delta"] for event in events]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == thoughts
    assert "".join(delta.get("content", "") for delta in deltas) == said


@pytest.mark.parametrize(
    ("fields", "is_open"), [({}, False), (SWITCHED_OFF, False), ({"template": R1}, True)]
)
async def test_the_engine_is_told_where_thoughts_lie(
    web: httpx.AsyncClient, engine: FakeEngine, use: Use, fields: dict[str, Any], is_open: bool
) -> None:
    fields = dict(fields)
    use(fields.pop("template", QWEN3))
    assert (await web.post(URL, json={**HELLO, **fields})).status_code == 200
    thinking = engine.requests[0].sampling.thinking
    assert thinking is not None
    assert (thinking.start_id, thinking.end_id, thinking.is_open) == (7, 8, is_open)
    assert thinking.budget is None


@pytest.mark.parametrize(
    ("fields", "budget"),
    [({"thinking_token_budget": 0}, 0), ({"thinking_token_budget": 77}, 77)]
    + [({"reasoning_effort": word}, budget) for word, budget in EFFORTS.items()],
)
async def test_budgets_reach_the_engine(
    web: httpx.AsyncClient,
    engine: FakeEngine,
    use: Use,
    fields: dict[str, Any],
    budget: int | None,
) -> None:
    use(R1)
    assert (await web.post(URL, json={**HELLO, **fields})).status_code == 200
    thinking = engine.requests[0].sampling.thinking
    assert thinking is not None
    assert thinking.budget == budget


REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    (HERMES, {"thinking_token_budget": 5}, "thinking_token_budget", "unsupported_parameter"),
    (HERMES, {"reasoning_effort": "low"}, "reasoning_effort", "unsupported_parameter"),
    (
        R1,
        {"reasoning_effort": "low", "thinking_token_budget": 5},
        "thinking_token_budget",
        "invalid_combination",
    ),
    (R1, {"thinking_token_budget": -1}, "thinking_token_budget", "invalid_value"),
    (R1, {"reasoning_effort": "huge"}, "reasoning_effort", "invalid_value"),
    (R1, SWITCHED_OFF, "chat_template_kwargs.enable_thinking", "invalid_messages"),
    (R1, {"add_generation_prompt": False}, "add_generation_prompt", "invalid_combination"),
    (
        R1,
        {"add_generation_prompt": True, "continue_final_message": True},
        "add_generation_prompt",
        "invalid_combination",
    ),
    (R1, {"continue_final_message": True}, "continue_final_message", "invalid_messages"),
]


@pytest.mark.parametrize("case", REFUSED)
async def test_what_a_base_cannot_do_is_refused_by_name(
    web: httpx.AsyncClient, engine: FakeEngine, use: Use, case: Any
) -> None:
    template, fields, param, code = case
    use(template)
    response = await web.post(URL, json={**HELLO, **fields})
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, param, code), error
    assert not engine.requests


async def test_no_effort_passes_on_a_base_that_does_not_think(
    web: httpx.AsyncClient, engine: FakeEngine, use: Use
) -> None:
    use(HERMES)
    response = await web.post(URL, json={**HELLO, "reasoning_effort": "none"})
    assert response.status_code == 200
    assert engine.requests[0].sampling.thinking is None


async def test_thoughts_that_are_sent_back_go_where_the_template_takes_them(
    web: httpx.AsyncClient, engine: FakeEngine, use: Use
) -> None:
    plain = {"role": "assistant", "content": "Hello"}
    echoed = {**plain, "reasoning_content": "I think"}
    body = {**HELLO, "messages": [USER, echoed, USER]}
    for template in (R1, QWEN3):
        renderer = use(template)
        assert (await web.post(URL, json=body)).status_code == 200
        ids = renderer.render_prompt([USER, plain, USER])  # both leave out those of earlier turns
        assert list(engine.requests[-1].prompt_ids) == ids
    use(HERMES)
    error = (await web.post(URL, json=body)).json()["error"]
    assert error["code"] == "invalid_messages"
    assert "reasoning_content" in error["message"]


async def test_an_answer_goes_on_where_the_last_message_stops(
    web: httpx.AsyncClient, engine: FakeEngine, use: Use
) -> None:
    renderer = use(QWEN3)
    messages = [USER, {"role": "assistant", "content": "Hello, wor"}]
    body = {**HELLO, "messages": messages, "continue_final_message": True}
    for fields in ({}, {"add_generation_prompt": False}):
        assert (await web.post(URL, json={**body, **fields})).status_code == 200
    prompts = {request.prompt_ids for request in engine.requests}
    assert prompts == {tuple(renderer.render_prompt(messages, continues_last=True))}
    thoughts = [USER, {"role": "assistant", "reasoning_content": "Let me"}]
    assert (await web.post(URL, json={**body, "messages": thoughts})).status_code == 200
    thinking = engine.requests[-1].sampling.thinking
    assert thinking is not None
    assert thinking.is_open
