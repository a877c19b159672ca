"""What answers may be while functions are offered, for each form of calls, on real tokens."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from server.answers.grammars.compiler import GrammarCompiler
from server.answers.grammars.constraint import Constraint
from server.answers.tools.choice import offer
from server.answers.tools.constraint import answer_constraint, is_certain
from server.errors import ApiError
from server.schemas.tools import NamedTool, Tool, ToolChoice
from tests.server.test_tool_parser import form_of, written
from tests.server.tool_templates import FORMS, tokenizer_with

INTEGER = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
MARKS = {
    "hermes": ("<tool_call>", "</tool_call>"),
    "deepseek": tuple(f"<｜tool▁{x}｜>" for x in ("calls▁begin", "calls▁end", "call▁begin", "sep")),
    "llama": ("<|python_tag|>",),
}
MARKS["deepseek31"] = MARKS["deepseek"]
FORMAT = Constraint('start: %json {"type": "object", "required": ["ok"]}', "response_format")
NAMED = NamedTool.model_validate({"type": "function", "function": {"name": "f"}})


def tools(*, strict: bool = False, parameters: Any = INTEGER) -> list[Tool]:
    function = {"name": "f", "parameters": parameters, "strict": strict}
    other = {"name": "g.2-x"}
    return [Tool.model_validate({"type": "function", "function": f}) for f in (function, other)]


class Answers:
    """The answers that one request allows, or that nothing is asked of them."""

    def __init__(self, name: str, is_token: bool, constraint: Any) -> None:
        self.tokenizer = tokenizer_with(FORMS[name], *(MARKS[name] if is_token else ()))
        if not is_token:  # letters, as in tokenizers that were not made for it
            config = self.tokenizer.backend_tokenizer.to_str().replace("tool_call>", "tool_cal1>")
            backend = type(self.tokenizer.backend_tokenizer).from_str(config)
            self.tokenizer = type(self.tokenizer)(tokenizer_object=backend, eos_token="<|end|>")
        self.compiler = GrammarCompiler(self.tokenizer, 6200, {self.tokenizer.eos_token_id})
        made = constraint(self.compiler.literal)
        self.grammar = None if made is None else asyncio.run(self.compiler.compile(made))

    def allow(self, text: str) -> bool:
        """Whether ``text`` may be a whole answer."""
        assert self.grammar is not None
        state = self.grammar.start()
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        for token in ids:
            if state.is_finished or not _has(state.mask, token):
                return False
            state.advance(token)
        return state.is_finished or _has(state.mask, self.tokenizer.eos_token_id)


def _has(mask: bytes, token: int) -> bool:
    return bool(mask[token // 8] >> token % 8 & 1)


def answers_of(
    name: str,
    is_token: bool,
    choice: ToolChoice | None = None,
    *,
    parallel: bool | None = None,
    strict: bool = False,
    wanted: Constraint | None = None,
) -> Answers:
    offered = offer(tools(strict=strict), choice, parallel)
    assert offered is not None
    form = form_of(name)
    return Answers(
        name, is_token, lambda literal: answer_constraint(form, offered, wanted, literal)
    )


def sample_texts(name: str) -> dict[str, str]:
    right, other = ("f", '{"a": 1}'), ("g.2-x", "{}")
    return {
        "text": "Hello <b>.\n",
        "call": written(name, right),
        "calls": written(name, right, other),
        "text, call": "I see." + written(name, right),
        "unknown": written(name, ("h", "{}")),
        "wrong": written(name, ("f", '{"a": "x"}')),
        "other": written(name, other),
        "document": '{"ok": true}',
    }


# request → what it allows; Llama's calls are all of an answer
CASES: list[tuple[dict[str, Any], set[str]]] = [
    ({"strict": True}, {"text", "document", "call", "calls", "text, call", "other"}),
    ({}, {"text", "document", "call", "calls", "text, call", "other", "wrong"}),
    ({"strict": True, "parallel": False}, {"text", "document", "call", "text, call", "other"}),
    ({"choice": "required"}, {"call", "calls", "other"}),
    ({"choice": "required", "parallel": False}, {"call", "other"}),
    ({"choice": NAMED}, {"call"}),
    ({"choice": "none"}, {"text", "document"}),
    ({"wanted": FORMAT}, {"document", "call", "calls", "other", "wrong"}),
    ({"wanted": FORMAT, "choice": "none"}, {"document"}),
    ({"wanted": FORMAT, "choice": "required"}, {"call", "calls", "other"}),
]


@pytest.mark.parametrize("is_token", [True, False])
@pytest.mark.parametrize("name", FORMS)
def test_an_answer_is_what_the_request_allows(name: str, is_token: bool) -> None:
    texts = sample_texts(name)
    for fields, expected in CASES:
        if name == "llama" and fields == {"wanted": FORMAT}:
            with pytest.raises(ApiError, match="tool_choice none"):
                answers_of(name, is_token, **fields)
            continue
        answers = answers_of(name, is_token, **fields)
        if answers.grammar is None:
            assert name == "llama"
            assert not fields.get("strict")
            continue
        if name == "llama":
            is_call = fields.get("strict")  # a text that begins with { is a call
            expected = expected - {"text, call"} - ({"document"} if is_call else set())
            expected |= {"text, call"} if is_call else set()
        assert {what for what, text in texts.items() if answers.allow(text)} == expected, fields


def test_llamas_calls_are_left_alone_while_nothing_is_strict() -> None:
    offered = offer(tools(), None, None)
    assert offered is not None
    form = form_of("llama")
    assert answer_constraint(form, offered, None, repr) is None
    assert not is_certain(form, offered, has_format=False)
    assert is_certain(form_of("hermes"), offered, has_format=False)


@pytest.mark.parametrize(
    ("parameters", "choice"),
    [({"type": "array"}, "required"), ({"type": "object", "dependentRequired": {}}, NAMED)],
)
def test_parameters_that_cannot_be_held_are_refused_where_they_must_be(
    parameters: Any, choice: Any
) -> None:
    given = tools(parameters=parameters)
    forced, free = offer(given, choice, None), offer(given, "auto", None)
    assert forced is not None
    assert free is not None
    with pytest.raises(ApiError) as caught:
        answer_constraint(form_of("hermes"), forced, None, repr)
    assert (caught.value.status, caught.value.param) == (400, "tools[0].function.parameters")
    assert answer_constraint(form_of("hermes"), free, None, repr) is not None
