"""Chats that a base cannot render faithfully, each refused at its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from artifacts.chat import ChatRenderer
from artifacts.errors import InvalidChat
from tests.artifacts.chats import (
    CALL,
    QWEN,
    USER,
    Message,
    conversation,
    tokenizer_of,
    with_template,
)

BAD: list[tuple[Any, str]] = [
    ([], "messages"),
    ("hello", "messages"),
    (["hello"], "messages[0]"),
    ([{"content": "q"}], "messages[0].role"),
    ([{"role": "bot", "content": "q"}], "messages[0].role"),
    ([{"role": ["user"], "content": "q"}], "messages[0].role"),
    ([USER, {"role": "user"}], "messages[1].content"),
    ([{"role": "user", "content": None}], "messages[0].content"),
    ([{"role": "user", "content": 3}], "messages[0].content"),
    ([{"role": "user", "content": {"type": "text"}}], "messages[0].content"),
    ([{"role": "user", "content": ["x"]}], "messages[0].content[0]"),
    ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0]"),
    ([{"role": "user", "content": [{"type": "image_url"}]}], "messages[0].content[0]"),
    ([{"role": "user", "content": [{"type": "input_audio"}]}], "messages[0].content[0]"),
    ([{"role": "user", "content": "\ud800"}], "messages[0].content"),
    ([USER | {"weight": 0}], "messages[0].weight"),
    ([USER | {"tool_calls": [CALL]}], "messages[0].tool_calls"),
    ([USER | {"tool_call_id": "1"}], "messages[0].tool_call_id"),
    ([USER | {"reasoning_content": "r"}], "messages[0].reasoning_content"),
    ([USER | {"name": "Ann"}], "messages[0]"),
    ([{"role": "assistant", "tool_calls": [{}]}], "messages[0].tool_calls[0].name"),
    ([{"role": "assistant", "tool_calls": "f"}], "messages[0].tool_calls"),
    (
        [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}],
        "messages[0].tool_calls[0]",
    ),
]


@pytest.mark.parametrize(("messages", "param"), BAD)
def test_bad_messages_are_refused_at_their_place(
    embedded: ChatRenderer, messages: Any, param: str
) -> None:
    with pytest.raises(InvalidChat) as caught:
        embedded.render_prompt(messages)
    assert caught.value.param == param


def test_what_echoing_clients_send_is_accepted(embedded: ChatRenderer) -> None:
    echoed: Message = {"role": "assistant", "content": "r", "refusal": None, "annotations": []}
    assert embedded.render_prompt([USER, echoed, USER]) == embedded.render_prompt(
        [USER, {"role": "assistant", "content": "r"}, USER]
    )


DROPPED: list[list[Message]] = [
    [USER, {"role": "tool", "content": "x", "tool_call_id": "1"}],
    [USER, {"role": "assistant", "content": "x", "tool_calls": [CALL]}],
    [USER, {"role": "assistant", "content": "x", "reasoning_content": "r"}],
]


@pytest.mark.parametrize("name", ["deepseek", "deepseek-template"])
@pytest.mark.parametrize("messages", DROPPED)
def test_what_deepseeks_template_would_drop_is_refused(
    renderers: Callable[[str], ChatRenderer], name: str, messages: list[Message]
) -> None:
    renderer = renderers(name)
    for _ in range(2):  # the answer is remembered; so is the refusal
        with pytest.raises(InvalidChat, match="leaves out"):
            renderer.render_prompt(messages)
    with pytest.raises(InvalidChat, match="tools"):
        renderer.render_prompt([USER], tools=[{"type": "function", "function": {"name": "f"}}])


def test_reasoning_that_is_dropped_beside_tool_calls_only_is_refused_there() -> None:
    renderer = with_template(
        QWEN.replace(
            "{{ m.content }}", "{{ '' if m.tool_calls else m.reasoning_content }}{{ m.content }}"
        )
    )
    reply = {"role": "assistant", "content": "x", "reasoning_content": "because"}
    assert "because" in renderer.render_text([USER, reply])
    with pytest.raises(InvalidChat, match="reasoning_content"):
        renderer.render_text([USER, reply | {"tool_calls": [CALL]}])
    # of earlier turns many templates drop it by design
    assert renderer.render_prompt([USER, reply | {"tool_calls": [CALL]}, USER])


def test_a_base_without_template_cannot_chat() -> None:
    tokenizer = tokenizer_of("embedded")
    tokenizer.chat_template = None
    renderer = ChatRenderer(tokenizer)
    assert renderer.template_hash is None
    with pytest.raises(InvalidChat, match="/v1/completions"):
        renderer.render_prompt([USER])


def test_the_templates_own_complaint_is_passed_on() -> None:
    renderer = with_template("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(InvalidChat, match="roles must alternate"):
        renderer.render_prompt([USER])


UNLEARNABLE = {
    "no EOS behind replies": QWEN.replace("<|end|>\n{% endfor %}", "{% endfor %}"),
    "an EOS behind the last one only": QWEN.replace("<|end|>\n{% endfor %}", "{% endfor %}<|end|>"),
    "another prompt than the reply's": QWEN.replace(
        "%}<|assistant|>{% endif", "%}<|assistant|><think>{% endif"
    ),
}


@pytest.mark.parametrize("why", UNLEARNABLE)
def test_replies_that_would_be_learned_wrongly_are_refused(why: str) -> None:
    renderer = with_template(UNLEARNABLE[why])
    with pytest.raises(InvalidChat):
        renderer.render_training(conversation([("q", "r"), ("q", "r")], None))
    with pytest.raises(InvalidChat, match="no assistant"):
        renderer.render_training([USER])
