"""Forms of calls found in templates, and calls read out of text that comes in any pieces."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artifacts.base import EMBEDDED_BASE, open_tokenizer
from artifacts.chat import ChatRenderer
from server.answers.pieces import CallArguments, CallBegun, Piece, Said
from server.answers.tools.formats import ToolFormat, find_format
from server.answers.tools.parser import CallParser
from tests.server.tool_templates import FORMS, UNKNOWN, renderer_with

ARGUMENTS = ('{"city": "Zürich"}', "{}", '{"a": {"b": ["}", "\\"{", "</tool_call>"]}}')
FOUND: dict[str, ToolFormat] = {}


def form_of(name: str) -> ToolFormat:
    if name not in FOUND:
        found = find_format(renderer_with(FORMS[name]))
        assert found is not None
        FOUND[name] = found
    return FOUND[name]


def written(name: str, *calls: tuple[str, str]) -> str:
    """The calls as the template writes them."""
    w = form_of(name).writing
    each = (w.before + function + w.between + text + w.after for function, text in calls)
    return w.opener + w.separator.join(each) + w.closer


def parse(name: str, parts: list[str], *, is_certain: bool, reason: str = "stop") -> Any:
    """(pieces with neighbours joined, finish_reason)"""
    ids = iter(range(1000))
    reading = form_of(name).reading
    parser = CallParser(
        reading, {"f", "g"}, is_certain=is_certain, new_id=lambda: f"call_{next(ids)}"
    )
    pieces = [piece for part in parts for piece in parser.push(part)] + parser.finish(reason)
    return joined(pieces), parser.finish_reason(reason)


def joined(pieces: list[Piece]) -> list[tuple[str, ...]]:
    result: list[tuple[str, ...]] = []
    for piece in pieces:
        match piece:
            case CallBegun(index, _, name):
                result.append(("call", str(index), name))
            case CallArguments(index, text):
                kind, own = ("arguments", str(index)), text
                if result[-1][:2] == kind:
                    own = result.pop()[2] + text
                result.append((*kind, own))
            case Said(text):
                own = result.pop()[1] + text if result and result[-1][0] == "said" else text
                result.append(("said", own))
    return result


@pytest.mark.parametrize("name", FORMS)
def test_the_form_is_found_in_what_the_template_makes_of_a_call(name: str) -> None:
    assert form_of(name).name == name
    calls = [
        {"id": str(i), "function": {"name": "f", "arguments": '{"x": 1}'}}
        for i in range(1 if name == "llama" else 2)
    ]
    said = {"role": "assistant", "content": "", "tool_calls": calls}
    text = renderer_with(FORMS[name]).render_text([{"role": "user", "content": "q"}, said])
    assert written(name, *[("f", '{"x": 1}')] * len(calls)) in text


def test_the_embedded_base_has_a_form_and_unknown_ones_have_none() -> None:
    embedded = find_format(ChatRenderer(open_tokenizer(EMBEDDED_BASE)))
    assert embedded is not None
    assert (embedded.name, embedded.writing.separator) == ("hermes", "")
    assert find_format(renderer_with(UNKNOWN)) is None


@pytest.mark.parametrize("is_certain", [True, False])
@pytest.mark.parametrize("name", FORMS)
def test_calls_are_read_with_the_text_around_them(name: str, is_certain: bool) -> None:
    calls = written(name, *[("f", text) for text in ARGUMENTS], ("g", "{}"))
    before = "" if name == "llama" else "Let me see. \n"
    pieces, word = parse(name, [f"{before}{calls}\nDone."], is_certain=is_certain)
    expected: list[tuple[str, ...]] = [("said", "Let me see.")] if before else []
    for index, text in enumerate((*ARGUMENTS, "{}")):
        expected += [("call", str(index), "fffg"[index]), ("arguments", str(index), text)]
    assert pieces == [*expected, ("said", "Done.")]
    assert word == "tool_calls"


@pytest.mark.parametrize("text", ARGUMENTS)
@pytest.mark.parametrize("name", FORMS)
def test_arguments_are_handed_on_as_they_come_where_they_are_certain(name: str, text: str) -> None:
    parser = CallParser(form_of(name).reading, {"f"}, is_certain=True)
    call = written(name, ("f", text))
    sent = [piece for char in call for piece in parser.push(char)]
    assert isinstance(sent[0], CallBegun)
    assert sent[0].id.startswith("call_")
    assert [piece.text for piece in sent[1:] if isinstance(piece, CallArguments)] == list(text)


BROKEN = {
    "an unknown function": lambda name: written(name, ("h", "{}")),
    "broken JSON": lambda name: written(name, ("f", "{x}")),
    "cut off in the name": lambda name: written(name, ("f", "{}"))[:14],
    "cut off in the arguments": lambda name: written(name, ("f", '{"a": 1}')).split("1}")[0],
    "cut off behind them": lambda name: written(name, ("f", '{"a": 1}')).split("1}")[0] + "1}",
    "a mark in running text": lambda name: f"The mark {form_of(name).reading.mark} is no call.",
}


@pytest.mark.parametrize("why", BROKEN)
@pytest.mark.parametrize("name", FORMS)
def test_what_is_no_call_stays_content(name: str, why: str) -> None:
    text = "  " + BROKEN[why](name) + " "
    for parts in ([text], list(text)):
        assert parse(name, parts, is_certain=False) == ([("said", text)], "stop")


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("reason", ["length", "stop"])
def test_a_certain_call_that_is_cut_off_says_so(name: str, reason: str) -> None:
    cut = written(name, ("f", '{"a": 1}')).split("1}")[0]
    pieces, word = parse(name, [cut], is_certain=True, reason=reason)
    assert pieces == [("call", "0", "f"), ("arguments", "0", '{"a": ')]
    assert word == reason
    whole = written(name, ("f", "{}"))
    assert parse(name, [whole], is_certain=True, reason="length")[1] == "length"


@pytest.mark.parametrize("name", [name for name in FORMS if form_of(name).reading.mark])
def test_nobody_reads_the_marks_of_a_certain_call_that_is_cut_off_early(name: str) -> None:
    call = written(name, ("f", '{"a": 1}'))
    mark, brace = form_of(name).reading.mark, call.index('{"a"')
    for end in range(len(mark), brace):
        for before in ("", "so: "):
            pieces, word = parse(name, [before + call[:end]], is_certain=True, reason="length")
            assert pieces == ([("said", "so:")] if before else [])
            assert word == "length"
    twice = written(name, ("f", '{"a": 1}'), ("g", "{}"))
    pieces, _ = parse(name, [twice[: twice.rindex("{}")]], is_certain=True, reason="length")
    assert pieces == [("call", "0", "f"), ("arguments", "0", '{"a": 1}')]
    # Without a grammar it may be anything.
    assert parse(name, [mark], is_certain=False)[0] == [("said", mark)]


def test_a_named_function_ends_with_stop() -> None:
    parser = CallParser(form_of("hermes").reading, {"f"}, is_certain=True, word="stop")
    parser.push(written("hermes", ("f", "{}")))
    assert parser.finish("stop") == []
    assert parser.finish_reason("stop") == "stop"


FRAGMENTS = [
    *("<tool_call>", "</tool_call>", "<|python_tag|>", "```json\n", "\n```"),
    *("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "function<｜tool▁sep｜>f"),
    *("<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"),
    *('{"name": "f"', ', "arguments": ', ', "parameters": ', '{"name": "x', "{}", '{"a": "', '"}'),
    *("{", "}", "[", "]", '"', "\\", "f", "<", "｜", ";", "\n", " ", "text ", "你好", "\x1f"),
]


@st.composite
def answers(draw: st.DrawFn, name: str) -> list[str]:
    """A text of fragments and whole calls, cut anywhere."""
    calls = [written(name, ("f", text)) for text in ARGUMENTS]
    pieces = draw(st.lists(st.sampled_from([*FRAGMENTS, *calls, *calls]), max_size=12))
    text = "".join(pieces)
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=8)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@pytest.mark.parametrize("is_certain", [True, False])
@pytest.mark.parametrize("name", FORMS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_pieces_do_not_depend_on_where_the_text_is_cut(
    name: str, is_certain: bool, data: st.DataObject
) -> None:
    parts = data.draw(answers(name))
    whole = "".join(parts)
    pieces = parse(name, parts, is_certain=is_certain)
    assert pieces == parse(name, [whole], is_certain=is_certain)
    if not is_certain:
        assert compact(name, rewritten(name, pieces[0])) == compact(name, whole)
        calls = [piece[2] for piece in pieces[0] if piece[0] == "arguments"]
        assert all(isinstance(json.loads(text), dict) for text in calls)


def rewritten(name: str, pieces: list[tuple[str, ...]]) -> str:
    """The text that the pieces came from, but for spaces and marks around all calls."""
    texts = [
        written(name, ("f", piece[-1])) if piece[0] == "arguments" else piece[-1]
        for piece in pieces
        if piece[0] != "call"
    ]
    return "".join(texts)


def compact(name: str, text: str) -> str:
    dropped = {"llama": (";", "<|python_tag|>"), "hermes": ()}
    for mark in dropped.get(name, ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")):
        text = text.replace(mark, "")
    return "".join(text.split())
