"""Templates and tokenizers of other habits: arguments as text, marks without EOS, prefix spaces."""

from __future__ import annotations

from artifacts.chat import ChatRenderer
from tests.artifacts.chats import (
    QWEN,
    USER,
    Message,
    conversation,
    reference,
    replies,
    tokenizer_of,
    with_template,
)


def test_a_template_that_joins_arguments_gets_text() -> None:
    renderer = with_template(
        QWEN.replace("c.function | tojson", "c.function.name + c.function.arguments")
    )
    call = {"function": {"name": "f", "arguments": {"x": 1}}}
    messages: list[Message] = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]
    assert '<tool_call>f{"x": 1}</tool_call>' in renderer.render_text(messages)


def test_an_eos_outside_the_generation_mark_is_learned_too() -> None:
    renderer = with_template(
        "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}{% generation %}"
        "{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}<|end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
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
