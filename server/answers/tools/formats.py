"""The forms in which bases write calls, found in what a base's own chat template makes of one.

    hermes       <tool_call>{"name": "f", "arguments": {…}}</tool_call>      Hermes, Qwen, ours
    deepseek     <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f
                 ```json {…} ```<｜tool▁call▁end｜><｜tool▁calls▁end｜>          R1, V3
    deepseek31   <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{…}<｜tool▁call▁end｜>…
    llama        {"name": "f", "parameters": {…}}                            Llama 3, as JSON

They are read with whatever spaces a model puts in, and written exactly as the template writes them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Protocol

from artifacts.errors import InvalidChat
from server.answers.tools.growing import NAME, SPACE, Atoms, Growing, literal, optional

CALLS_BEGIN, CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
CALL_BEGIN, CALL_END, SEP = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>"
PYTHON_TAG = "<|python_tag|>"


@dataclass(frozen=True)
class Reading:
    """How calls are found in an answer."""

    heads: tuple[Growing, ...]  # from the first mark to the arguments' first brace
    tail: Growing  # behind the arguments
    gap: Growing  # behind a call
    mark: str = ""  # that begins a call; "": there is none, so calls are all of an answer
    further: str = ""  # that begins a call behind another one, where it is another mark


@dataclass(frozen=True)
class Writing:
    """A call's text around its name and its arguments, as the template writes it."""

    before: str
    between: str
    after: str
    separator: str  # of two calls
    opener: str = ""  # of all calls
    closer: str = ""


@dataclass(frozen=True)
class ToolFormat:
    """One of the forms, as one base has it."""

    name: str
    reading: Reading
    writing: Writing


class Renderer(Protocol):
    """What is needed of ``artifacts.chat.ChatRenderer``."""

    def render_text(self, messages: Any, *, add_generation_prompt: bool = True) -> str: ...


def find_format(renderer: Renderer) -> ToolFormat | None:
    """How the base behind ``renderer`` writes calls; None: in no form that is known here."""
    for num_calls in (2, 1):  # Llama's template takes one at once
        try:
            text = renderer.render_text(_probe(num_calls), add_generation_prompt=False)
        except InvalidChat:
            continue
        for name, form in _FORMS.items():
            calls = list(form.written.finditer(text))
            if len(calls) == num_calls:
                return ToolFormat(name, form.reading, _writing(form, text, calls))
    return None


# --- the forms ---


@dataclass(frozen=True)
class _Form:
    written: re.Pattern[str]  # a probe's call
    reading: Reading
    separator: str  # where a template writes one call only
    opener: str = ""
    closer: str = ""


_NAME, _KEY, _VALUE = "qzxname", "qzxkey", "qzxvalue"
_ARGUMENTS = rf'\{{\s*"{_KEY}"\s*:\s*"{_VALUE}"\s*\}}'


def _probe(num_calls: int) -> list[dict[str, Any]]:
    function = {"name": _NAME, "arguments": {_KEY: _VALUE}}
    calls = [{"id": f"qzx{i}", "type": "function", "function": function} for i in range(num_calls)]
    ask = {"role": "user", "content": "q"}
    return [ask, {"role": "assistant", "content": "", "tool_calls": calls}]


def _writing(form: _Form, text: str, calls: list[re.Match[str]]) -> Writing:
    first = calls[0]
    separator = form.separator if len(calls) == 1 else text[first.end() : calls[1].start()]
    parts = (first["before"], first["between"], first["after"])
    return Writing(*parts, separator, form.opener, form.closer)


def _written(before: str, between: str, after: str) -> re.Pattern[str]:
    return re.compile(
        f"(?P<before>{before}){_NAME}(?P<between>{between}){_ARGUMENTS}(?P<after>{after})"
    )


def _json_head(key: str) -> Atoms:
    """``{"name": "f", "<key>": {``"""
    atoms: Atoms = (*literal("{"), *SPACE, *literal('"name"'), *SPACE, ":", *SPACE)
    atoms += (*literal('"'), *NAME, *literal('"'), *SPACE, ",", *SPACE)
    return (*atoms, *literal(f'"{key}"'), *SPACE, ":", *SPACE, r"\{")


def _hermes() -> _Form:
    head = (*literal("<tool_call>"), *SPACE, *_json_head("arguments"))
    tail = (*SPACE, r"\}", *SPACE, *literal("</tool_call>"))
    return _Form(
        _written(r'<tool_call>\s*\{"name": ?"', r'", ?"arguments": ?', r"\}\s*</tool_call>"),
        Reading((Growing(head),), Growing(tail), Growing(SPACE), mark="<tool_call>"),
        separator="\n",
    )


def _deepseek(before: str, between: Atoms, after: Atoms, written: re.Pattern[str]) -> _Form:
    head = (*literal(CALL_BEGIN), *SPACE, *literal(before), *NAME, *between, *SPACE, r"\{")
    opened = (*literal(CALLS_BEGIN), *SPACE, *head)
    tail = (*after, *SPACE, *literal(CALL_END))
    closer = literal(CALLS_END)
    gap = Growing((*SPACE, *closer, *SPACE), whole=rf"\s*{optional(closer)}\s*")
    heads = (Growing(opened), Growing(head))
    reading = Reading(heads, Growing(tail), gap, mark=CALLS_BEGIN, further=CALL_BEGIN)
    return _Form(written, reading, separator="\n", opener=CALLS_BEGIN, closer=CALLS_END)


def _llama() -> _Form:
    head = _json_head("parameters")
    tagged = (*literal(PYTHON_TAG), *SPACE, *head)
    tail = Growing((*SPACE, r"\}"))
    gap = Growing((*SPACE, ";", *SPACE), whole=r"\s*;?\s*")
    written = _written(r'\{"name": ?"', r'", ?"parameters": ?', r"\}")
    return _Form(written, Reading((Growing(tagged), Growing(head)), tail, gap), separator="; ")


_FORMS: dict[str, _Form] = {
    "hermes": _hermes(),
    "deepseek": _deepseek(
        f"function{SEP}",
        (*SPACE, *literal("```json"), *SPACE),
        (*SPACE, *literal("```")),
        _written(rf"{CALL_BEGIN}function{SEP}", r"\n```json\n", rf"\n```{CALL_END}"),
    ),
    "deepseek31": _deepseek("", literal(SEP), (), _written(CALL_BEGIN, SEP, CALL_END)),
    "llama": _llama(),
}
