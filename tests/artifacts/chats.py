"""Tokenizers and templates to render with, and what a rendered row says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from artifacts.base import EMBEDDED_BASE, open_tokenizer
from artifacts.chat import ChatRenderer, RenderedChat

Message = dict[str, Any]

NAMES = ("embedded", "deepseek", "deepseek-template", "qwen")

# The real tokenizer is not shipped; where it lies beside the repository it is tested too.
DEEPSEEK = Path(__file__).resolve().parents[3] / "shared" / "models" / "deepseek-llm-7b-chat"
# DeepSeek-LLM's own: no marks, and roles that it does not know are dropped in silence.
DEEPSEEK_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ 'User: ' + message['content'] + '\n\n' }}{% elif message['role'] == 'assistant' %}"
    "{{ 'Assistant: ' + message['content'] + eos_token }}"
    "{% elif message['role'] == 'system' %}{{ message['content'] + '\n\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
# Qwen2.5's in short: a default system prompt, arguments of tool calls as JSON.
QWEN = (
    "{% if messages[0].role != 'system' %}<|system|>You are helpful.<|end|>\n{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}"
    "<|end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TEMPLATES = {"deepseek-template": DEEPSEEK_TEMPLATE, "qwen": QWEN}

USER: Message = {"role": "user", "content": "q"}
CALL = {"function": {"name": "f", "arguments": "{}"}}


def tokenizer_of(name: str) -> Any:
    if name == "deepseek" and not DEEPSEEK.is_dir():
        pytest.skip("the DeepSeek tokenizer is not here")
    tokenizer = open_tokenizer(DEEPSEEK if name == "deepseek" else EMBEDDED_BASE)
    if name in TEMPLATES:
        tokenizer.chat_template = TEMPLATES[name]
    return tokenizer


def with_template(template: str) -> ChatRenderer:
    """The embedded base's tokenizer under another template."""
    tokenizer = tokenizer_of("embedded")
    tokenizer.chat_template = template
    return ChatRenderer(tokenizer)


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


def conversation(pairs: list[tuple[str, str]], system: str | None) -> list[Message]:
    messages = [] if system is None else [{"role": "system", "content": system}]
    for question, answer in pairs:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": answer})
    return messages
