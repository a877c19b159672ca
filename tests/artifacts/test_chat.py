"""One renderer for serving and training: transformers' ids, nothing dropped, replies learned."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artifacts.base import EMBEDDED_BASE, open_tokenizer
from artifacts.chat import ChatRenderer, RenderedChat
from artifacts.errors import InvalidChat

Message = dict[str, Any]

DEEPSEEK = Path("/work/shared/models/deepseek-llm-7b-chat")
# Qwen2.5's in short: a default system prompt, arguments of tool calls as JSON.
QWEN = (
    "{% if messages[0].role != 'system' %}<|system|>You are helpful.<|end|>\n{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}"
    "<|end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tokenizer_of(name: str) -> Any:
    if name == "deepseek" and not DEEPSEEK.is_dir():
        pytest.skip("the DeepSeek tokenizer is not here")
    tokenizer = open_tokenizer(DEEPSEEK if name == "deepseek" else EMBEDDED_BASE)
    if name == "qwen":
        tokenizer.chat_template = QWEN
    return tokenizer


@pytest.fixture(scope="module")
def renderers() -> Callable[[str], ChatRenderer]:
    made: dict[str, ChatRenderer] = {}

    def get(name: str) -> ChatRenderer:
        if name not in made:
            made[name] = ChatRenderer(tokenizer_of(name))
        return made[name]

    return get


@pytest.fixture(params=["embedded", "deepseek", "qwen"])
def renderer(request: pytest.FixtureRequest, renderers: Callable[[str], ChatRenderer]) -> Any:
    return renderers(request.param)


@pytest.fixture
def embedded(renderers: Callable[[str], ChatRenderer]) -> ChatRenderer:
    return renderers("embedded")


def reference(renderer: ChatRenderer, messages: list[Message], **options: Any) -> list[int]:
    ids = renderer._tokenizer.apply_chat_template(
        messages, tokenize=True, return_dict=False, **options
    )
    return list(ids)


def decode(renderer: ChatRenderer, ids: list[int]) -> str:
    return str(renderer._tokenizer.decode(ids))


def round_trip(renderer: ChatRenderer, text: str) -> str:
    """DeepSeek's tokenizer has letters such as õ as tokens that do not decode to themselves."""
    return decode(renderer, renderer._tokenizer.encode(text, add_special_tokens=False))


def replies(renderer: ChatRenderer, row: RenderedChat) -> list[str]:
    """The learned runs of a row, as text."""
    runs: list[list[int]] = []
    before = False
    for id_, is_learned in zip(row.input_ids, row.assistant_mask, strict=True):
        if is_learned and not before:
            runs.append([])
        if is_learned:
            runs[-1].append(id_)
        before = is_learned
    return [decode(renderer, run) for run in runs]


texts = st.text(st.characters(codec="utf-8"), max_size=30)
turns = st.lists(st.tuples(texts, texts), min_size=1, max_size=3)


def conversation(pairs: list[tuple[str, str]], system: str | None) -> list[Message]:
    messages = [] if system is None else [{"role": "system", "content": system}]
    for question, answer in pairs:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer})
    return messages


@given(pairs=turns, system=st.none() | texts)
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("name", ["embedded", "deepseek", "qwen"])
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


@given(pairs=turns, system=st.none() | texts)
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("name", ["embedded", "deepseek", "qwen"])
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
    space = " " if name == "deepseek" else ""
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


def test_a_template_that_joins_arguments_gets_text() -> None:
    tokenizer = tokenizer_of("qwen")
    tokenizer.chat_template = QWEN.replace(
        "c.function | tojson", "c.function.name + c.function.arguments"
    )
    renderer = ChatRenderer(tokenizer)
    call = {"function": {"name": "f", "arguments": {"x": 1}}}
    messages: list[Message] = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]
    assert '<tool_call>f{"x": 1}</tool_call>' in renderer.render_text(messages)


def test_text_parts_are_joined_and_developer_is_system(embedded: ChatRenderer) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    messages: list[Message] = [
        {"role": "developer", "content": "d"},
        {"role": "user", "content": parts},
    ]
    plain = [{"role": "system", "content": "d"}, {"role": "user", "content": "one\ntwo"}]
    assert embedded.render_prompt(messages) == embedded.render_prompt(plain)


USER: Message = {"role": "user", "content": "q"}
CALL = {"function": {"name": "f", "arguments": "{}"}}
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


@pytest.mark.parametrize("messages", DROPPED)
def test_what_deepseeks_template_would_drop_is_refused(
    renderers: Callable[[str], ChatRenderer], messages: list[Message]
) -> None:
    renderer = renderers("deepseek")
    for _ in range(2):  # the answer is remembered; so is the refusal
        with pytest.raises(InvalidChat, match="leaves out"):
            renderer.render_prompt(messages)
    with pytest.raises(InvalidChat, match="tools"):
        renderer.render_prompt([USER], tools=[{"type": "function", "function": {"name": "f"}}])


def test_reasoning_that_is_dropped_beside_tool_calls_only_is_refused_there() -> None:
    tokenizer = tokenizer_of("qwen")
    tokenizer.chat_template = QWEN.replace(
        "{{ m.content }}", "{{ '' if m.tool_calls else m.reasoning_content }}{{ m.content }}"
    )
    renderer = ChatRenderer(tokenizer)
    reply = {"role": "assistant", "content": "x", "reasoning_content": "because"}
    assert "because" in renderer.render_text([USER, reply])
    with pytest.raises(InvalidChat, match="reasoning_content"):
        renderer.render_text([USER, reply | {"tool_calls": [CALL]}])
    # of earlier turns many templates drop it by design
    assert renderer.render_prompt([USER, reply | {"tool_calls": [CALL]}, USER])


def test_prompts_render_from_many_threads_while_others_decode(embedded: ChatRenderer) -> None:
    messages = conversation([("订单 <|end|> 在哪里？", "在路上。")], "s")
    ids = embedded.render_prompt(messages)

    def work(turn: int) -> bool:
        if turn % 2:
            return "在路上" in decode(embedded, ids)
        return embedded.render_prompt(messages) == ids

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(400)))


def test_a_base_without_template_cannot_chat() -> None:
    tokenizer = tokenizer_of("embedded")
    tokenizer.chat_template = None
    renderer = ChatRenderer(tokenizer)
    assert renderer.template_hash is None
    with pytest.raises(InvalidChat, match="/v1/completions"):
        renderer.render_prompt([USER])


def test_the_templates_own_complaint_is_passed_on() -> None:
    tokenizer = tokenizer_of("qwen")
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(InvalidChat, match="roles must alternate"):
        ChatRenderer(tokenizer).render_prompt([USER])


UNLEARNABLE = {
    "no EOS behind replies": QWEN.replace("<|end|>\n{% endfor %}", "{% endfor %}"),
    "an EOS behind the last one only": QWEN.replace("<|end|>\n{% endfor %}", "{% endfor %}<|end|>"),
    "another prompt than the reply's": QWEN.replace(
        "%}<|assistant|>{% endif", "%}<|assistant|><think>{% endif"
    ),
}


@pytest.mark.parametrize("why", UNLEARNABLE)
def test_replies_that_would_be_learned_wrongly_are_refused(why: str) -> None:
    tokenizer = tokenizer_of("qwen")
    tokenizer.chat_template = UNLEARNABLE[why]
    messages = conversation([("q", "r"), ("q", "r")], None)
    with pytest.raises(InvalidChat):
        ChatRenderer(tokenizer).render_training(messages)
    with pytest.raises(InvalidChat, match="no assistant"):
        ChatRenderer(tokenizer).render_training([USER])


def test_an_eos_outside_the_generation_mark_is_learned_too() -> None:
    tokenizer = tokenizer_of("qwen")
    tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}{% generation %}"
        "{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}<|end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    renderer = ChatRenderer(tokenizer)
    row = renderer.render_training(conversation([("q", "one"), ("q", "two")], None))
    assert replies(renderer, row) == ["one<|end|>", "two<|end|>"]


def test_sentencepiece_style_prefixes_are_not_doubled() -> None:
    """Cut text must not gain the space that such tokenizers put before a string."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = ["▁", "<s>", "</s>", "\n", *"abc:UA"]
    backend = Tokenizer(models.BPE({text: i for i, text in enumerate(letters)}, []))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ 'U:' if m.role == 'user' else 'A:' }}{{ m.content }}"
        "{{ eos_token if m.role == 'assistant' else '' }}{% endfor %}"
        "{% if add_generation_prompt %}A:{% endif %}"
    )
    renderer = ChatRenderer(tokenizer)
    messages = conversation([("ab", "ca"), ("a</s>b", "b c")], None)
    row = renderer.render_training(messages)
    assert replies(renderer, row) == ["ca</s>", "b c</s>"]
    assert row.input_ids.count(tokenizer.eos_token_id) == 2
    usual = conversation([("ab", "ca"), ("cb", "b c")], None)
    assert renderer.render_training(usual).input_ids == reference(renderer, usual)


def test_replies_that_follow_at_once_are_each_learned() -> None:
    tokenizer = tokenizer_of("qwen")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}"
        "{{ eos_token if m.role == 'assistant' else '\n' }}{% endfor %}"
    )
    renderer = ChatRenderer(tokenizer)
    two = [{"role": "assistant", "content": text} for text in ("one", "two")]
    row = renderer.render_training([USER, *two, USER, two[0]])
    assert replies(renderer, row) == ["one<|end|>two<|end|>", "one<|end|>"]


def test_a_truncation_stored_with_the_tokenizer_cuts_no_prompt() -> None:
    tokenizer = tokenizer_of("qwen")
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding(length=8)
    renderer = ChatRenderer(tokenizer)
    assert renderer.render_prompt([USER]) == ChatRenderer(tokenizer_of("qwen")).render_prompt(
        [USER]
    )
