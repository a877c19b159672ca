"""Tokenizer and chat template: round trips, single digits, and the generation mask."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from training.pretrain.corpus import ORDER_TOOL, Conversation, Corpus
from training.pretrain.stream import encode
from training.pretrain.tokenizer import MARKS, NUM_RESERVED, ROLES
from training.pretrain.words import common_characters

from .paths import EMBEDDED

RAW = Tokenizer.from_file(str(EMBEDDED / "tokenizer.json"))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(EMBEDDED)


def full_conversation() -> Conversation:
    """Every kind of turn that the template knows."""
    call = {"name": "get_order_status", "arguments": {"order_id": "LK-1", "note": "订单"}}
    return Conversation(
        [
            {"role": "system", "content": "你是客服。"},
            {"role": "user", "content": "Where is LK-1?"},
            {
                "role": "assistant",
                "content": "",
                "reasoning_content": "look it up",
                "tool_calls": [{"type": "function", "function": call}],
            },
            {"role": "tool", "content": '{"status": "shipped"}'},
            {"role": "assistant", "content": "It is on its way."},
            {"role": "user", "content": "谢谢"},
            {"role": "assistant", "content": "不客气！"},
        ],
        [ORDER_TOOL],
    )


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_any_text_round_trips(text: str) -> None:
    ids = RAW.encode(text, add_special_tokens=False).ids
    assert RAW.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("text", ["👩‍👩‍👧 ok \x00\x07\r\n\t", "龘𠮷 ﷽ ñ", "  a  ", "1e-5 ４２ ½"])
def test_unusual_text_round_trips(tokenizer: Any, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_digits_and_common_characters_are_single_tokens() -> None:
    assert RAW.encode("LK-2039").tokens[-4:] == ["2", "0", "3", "9"]
    text = "".join(common_characters())
    assert len(RAW.encode(text).ids) == len(text)


def test_special_tokens(tokenizer: Any) -> None:
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|bos|>",
        "<|end|>",
        "<|pad|>",
    )
    reserved = [f"<|reserved_{i}|>" for i in range(NUM_RESERVED)]
    for token in (*ROLES, *MARKS, *reserved):
        assert tokenizer.encode(token, add_special_tokens=False) == [RAW.token_to_id(token)]


def test_template_renders_every_turn(tokenizer: Any) -> None:
    conversation = full_conversation()
    text = tokenizer.apply_chat_template(
        conversation.messages, tools=conversation.tools, tokenize=False, add_generation_prompt=True
    )
    assert text.startswith("<|bos|><|system|>你是客服。\n<tools>{")
    assert (
        '<|assistant|><think>look it up</think><tool_call>{"name": "get_order_status", '
        '"arguments": {"order_id": "LK-1", "note": "订单"}}</tool_call><|end|>'
        '<|tool|>{"status": "shipped"}<|end|><|assistant|>It is on its way.<|end|>'
    ) in text
    assert text.endswith("不客气！<|end|><|assistant|>")


def test_training_tokens_and_mask_equal_the_template(tokenizer: Any) -> None:
    conversations = [full_conversation(), *Corpus(5).pool(1, 60)]
    for conversation in conversations:
        rendered = tokenizer.apply_chat_template(
            conversation.messages,
            tools=conversation.tools or None,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        ids, mask = encode(RAW, conversation)
        assert rendered["input_ids"] == ids
        assert [bool(bit) for bit in rendered["assistant_masks"]] == mask


def test_the_mask_covers_replies_with_their_end_and_nothing_else(tokenizer: Any) -> None:
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}],
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    pairs = zip(rendered["input_ids"], rendered["assistant_masks"], strict=True)
    assert tokenizer.decode([token for token, bit in pairs if bit]) == "hello<|end|>"


def test_an_unknown_role_is_refused(tokenizer: Any) -> None:
    with pytest.raises(Exception, match="unknown role: critic"):
        tokenizer.apply_chat_template([{"role": "critic", "content": "x"}], tokenize=False)


def test_content_parts_and_string_arguments(tokenizer: Any) -> None:
    function = {"name": "f", "arguments": '{"a": 1}'}
    text = tokenizer.apply_chat_template(
        [
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            },
            {"role": "assistant", "content": None, "tool_calls": [{"function": function}]},
        ],
        tokenize=False,
    )
    assert text.endswith(
        '<|user|>ab<|end|><|assistant|><tool_call>{"name": "f", '
        '"arguments": {"a": 1}}</tool_call><|end|>'
    )
