"""Modelfiles: a Go template only where the chat template is no more than that."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from artifacts.base import open_base
from export.gguf.ollama import modelfile, read_turns

CHATML = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
COUNTS = "{% for m in messages %}{{ loop.index }}: {{ m.content }}\n{% endfor %}"
CUTS = (
    "{% for m in messages %}{% if m.role == 'assistant' and not loop.last %}[cut]{% else %}"
    "<{{ m.role }}>{{ m.content }}</>{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def base() -> Any:
    return open_base(None)


def with_template(base: Any, template: str) -> Any:
    tokenizer = copy.copy(base.tokenizer)
    tokenizer.chat_template = template
    return tokenizer


def test_the_embedded_bases_modelfile(base: Any) -> None:
    lines = modelfile(base, "support@3").splitlines()
    assert lines[1] == "FROM ./model.gguf"
    assert lines[2] == (
        'TEMPLATE """<|bos|>{{ range $i, $_ := .Messages }}'
        "{{ $last := eq (len (slice $.Messages $i)) 1 }}"
        '{{ if eq .Role "system" }}<|system|>{{ .Content }}<|end|>'
        '{{ else if eq .Role "user" }}<|user|>{{ .Content }}<|end|>'
        '{{ else if eq .Role "assistant" }}<|assistant|>{{ .Content }}'
        "{{ if not $last }}<|end|>{{ end }}{{ end }}"
        '{{ if and $last (ne .Role "assistant") }}<|assistant|>{{ end }}{{ end }}"""'
    )
    assert lines[3] == 'PARAMETER stop "<|end|>"'
    assert lines[-2:] == ["# FROM ./base.gguf", "# ADAPTER ./adapter.gguf"]


def test_a_default_system_message_is_kept_for_conversations_without_one(base: Any) -> None:
    turns = read_turns(with_template(base, CHATML))
    assert turns is not None
    assert turns.no_system == "<|im_start|>system\nBe kind.<|im_end|>\n"
    assert turns.around["user"] == ("<|im_start|>user\n", "<|im_end|>\n")
    assert turns.go_template.startswith("{{ if not .System }}<|im_start|>system\nBe kind.")


@pytest.mark.parametrize("template", [COUNTS, CUTS, "{{ raise_exception('no') }}", None])
def test_what_is_more_than_text_around_messages_is_left_out_and_said(
    base: Any, template: str
) -> None:
    from dataclasses import replace

    tokenizer = with_template(base, template)
    assert read_turns(tokenizer) is None
    text = modelfile(replace(base, tokenizer=tokenizer), "support@3")
    assert "\nTEMPLATE" not in text
    assert "# TEMPLATE is left out" in text
