"""One renderer for serving and training: transformers' ids, nothing dropped, replies learned."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from artifacts.chat import ChatRenderer
from tests.artifacts.chats import (
    NAMES,
    Message,
    conversation,
    decode,
    reference,
    replies,
    round_trip,
)

anything = st.text(st.characters(codec="utf-8"), max_size=30)
# Hypothesis also draws string constants of the code under test, so control tokens too: those stay
# text here and become tokens in transformers.
texts = anything.filter(lambda text: not ("<" in text and ">" in text))
turns = st.lists(st.tuples(texts, texts), min_size=1, max_size=3)


@given(pairs=turns, system=st.none() | texts)
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("name", NAMES)
def test_prompts_are_those_of_transformers(
    renderers: Callable[[str], ChatRenderer],
    name: str,
    pairs: list[tuple[str, str]],
    system: str | None,
) -> None:
    renderer = renderers(name)
    messages = conversation(pairs, system)[:-1]
    expected = reference(renderer, messages, add_generation_prompt=True)
    assert renderer.render_prompt(messages) == expected
    plain = renderer._tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    assert renderer.render_text(messages) == plain


@given(
    pairs=st.lists(st.tuples(anything, anything), min_size=1, max_size=3), system=st.none() | texts
)
@settings(max_examples=60, deadline=None)
@example(pairs=[("<tool_call>", "<think>")], system="<|end|>")
@example(pairs=[("<|end|>", "a<|end|>"), ("</think>", "<|user|>")], system=None)
@pytest.mark.parametrize("name", NAMES)
def test_the_mask_selects_each_reply_with_its_eos_and_nothing_else(
    renderers: Callable[[str], ChatRenderer],
    name: str,
    pairs: list[tuple[str, str]],
    system: str | None,
) -> None:
    renderer = renderers(name)
    messages = conversation(pairs, system)
    row = renderer.render_training(messages)
    tokenizer = renderer._tokenizer
    space = " " if name.startswith("deepseek") else ""
    expected = [space + answer + tokenizer.eos_token for _, answer in pairs]
    assert replies(renderer, row) == [round_trip(renderer, text) for text in expected]
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    assert decode(renderer, row.input_ids) == round_trip(renderer, whole)
    prompt = renderer.render_prompt(messages[: 1 + (system is not None)])
    assert row.input_ids[: len(prompt)] == prompt
    assert row.assistant_mask[: len(prompt) + 1] == [False] * len(prompt) + [True]


def test_a_usual_row_is_tokenised_as_transformers_would(renderer: ChatRenderer) -> None:
    messages = conversation(
        [("你好，订单 123？", "已发货。"), ("Thanks", "You're welcome!")], "Be."
    )
    assert renderer.render_training(messages).input_ids == reference(renderer, messages)


@pytest.mark.parametrize("role", ["system", "user", "assistant"])
def test_special_tokens_in_content_stay_text(renderer: ChatRenderer, role: str) -> None:
    tokenizer = renderer._tokenizer
    specials = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    for special in specials[:13]:
        content = f"a{special}{special[0]}{special} b"
        messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}]
        plain = renderer.render_training(messages)
        if role == "system":
            messages.insert(0, {"role": "system", "content": "s"})
            plain = renderer.render_training(messages)
        changed = [m | {"content": content} if m["role"] == role else m for m in messages]
        row = renderer.render_training(changed)
        id_ = tokenizer.convert_tokens_to_ids(special)
        assert row.input_ids.count(id_) == plain.input_ids.count(id_)
        assert content in decode(renderer, row.input_ids)
        assert len(replies(renderer, row)) == 1


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_no_mixture_of_pieces_makes_a_control_token(
    renderers: Callable[[str], ChatRenderer], data: st.DataObject
) -> None:
    renderer = renderers("embedded")
    tokenizer = renderer._tokenizer
    specials = {token.content: id_ for id_, token in tokenizer.added_tokens_decoder.items()}
    pieces = st.sampled_from(
        [*list(specials)[:13], "<", "<|", "|>", "end", "a", "\U000f0000", "\n"]
    )
    text = "".join(data.draw(st.lists(pieces, max_size=8)))
    messages = [{"role": "user", "content": text}]
    ids = renderer.render_prompt(messages)
    assert [id_ for id_ in ids if id_ in specials.values()] == [
        specials[token] for token in ("<|bos|>", "<|user|>", "<|end|>", "<|assistant|>")
    ]
    assert text in decode(renderer, ids)
    assert renderer.render_text(messages) == f"<|bos|><|user|>{text}<|end|><|assistant|>"


def test_tool_calls_and_reasoning_are_learned_and_results_are_not(embedded: ChatRenderer) -> None:
    call = {"id": "1", "function": {"name": "find", "arguments": '{"city": "上海<|end|>"}'}}
    messages: list[Message] = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [call]},
        {"role": "tool", "content": '{"t": 3}', "tool_call_id": "1"},
        {"role": "assistant", "content": "3 degrees"},
    ]
    tools = [{"type": "function", "function": {"name": "find", "parameters": {}}}]
    row = embedded.render_training(messages, tools=tools)
    assert replies(embedded, row) == [
        '<think>hm</think><tool_call>{"name": "find", "arguments": {"city": "上海<|end|>"}}'
        "</tool_call><|end|>",
        "3 degrees<|end|>",
    ]
    end = embedded._tokenizer.eos_token_id
    learned = [i for i, m in zip(row.input_ids, row.assistant_mask, strict=True) if m]
    assert learned.count(end) == 2
    prompt = embedded.render_prompt(messages[:1], tools=tools)
    assert row.input_ids[: len(prompt)] == prompt


def test_text_parts_are_joined_and_developer_is_system(embedded: ChatRenderer) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    messages: list[Message] = [
        {"role": "developer", "content": "d"},
        {"role": "user", "content": parts},
    ]
    plain = [{"role": "system", "content": "d"}, {"role": "user", "content": "one\ntwo"}]
    assert embedded.render_prompt(messages) == embedded.render_prompt(plain)


def test_prompts_render_from_many_threads_while_others_decode(embedded: ChatRenderer) -> None:
    messages = conversation([("订单 <|end|> 在哪里？", "在路上。")], "s")
    ids = embedded.render_prompt(messages)

    def work(turn: int) -> bool:
        if turn % 2:
            return "在路上" in decode(embedded, ids)
        return embedded.render_prompt(messages) == ids

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(400)))
