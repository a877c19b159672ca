"""Grammars over tokenizers of each kind: what must be said can be said, token by token."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from artifacts.base import EMBEDDED_BASE, open_tokenizer
from server.answers.grammars.vocabulary import read_vocabulary

DEEPSEEK = Path(__file__).parents[3] / "shared/models/deepseek-llm-7b-chat"
# ÿ is a token of DeepSeek's that decodes to a byte which no text holds.
TEXTS = [
    "a<>b",
    "ÿx ñ",
    "<think>hi</think>",
    "你好，世界",
    " two  spaces\n\tand a tab",
    "e\u0301🙂🇨🇳",
]


def sentencepiece() -> Any:
    letters = [*'abcdefghijklmnopqrstuvwxyz,:"{}[]', "▁", "▁two", "▁spaces", "hi", "<s>", "</s>"]
    vocab = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    ids = {token: i for i, token in enumerate(vocab)}
    merges: list[tuple[str, str]] = [("h", "i")]
    backend = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", bos_token="<s>", unk_token="<unk>"
    )


def deepseek(*, is_special: bool) -> Any:
    if not DEEPSEEK.is_dir():
        pytest.skip("the DeepSeek tokenizer is not here")
    tokenizer = open_tokenizer(DEEPSEEK)
    marks = ["<think>", "</think>", "<｜tool▁calls▁begin｜>"]
    tokenizer.add_tokens([AddedToken(mark, special=is_special, normalized=False) for mark in marks])
    return tokenizer


TOKENIZERS: dict[str, Callable[[], Any]] = {
    "embedded": lambda: open_tokenizer(EMBEDDED_BASE),
    "sentencepiece": sentencepiece,
    "deepseek": lambda: deepseek(is_special=True),
    "r1": lambda: deepseek(is_special=False),  # whose marks are ordinary tokens
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return TOKENIZERS[request.param]()


@pytest.fixture(scope="module")
def vocabulary(tokenizer: Any) -> LLTokenizer:
    return read_vocabulary(tokenizer, len(tokenizer) + 6, {tokenizer.eos_token_id})


def say(tokenizer: Any, vocabulary: LLTokenizer, lark: str, highest: bool) -> str:
    """The text of a run that always takes the first or the last token that is allowed."""
    matcher = LLMatcher(vocabulary, lark, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    ids: list[int] = []
    while not matcher.is_stopped():
        bits = int.from_bytes(matcher.compute_bitmask(), "little")
        assert bits, f"no way on behind {ids}"
        token = bits.bit_length() - 1 if highest else (bits & -bits).bit_length() - 1
        if token == tokenizer.eos_token_id:
            break
        assert matcher.consume_token(token), matcher.get_error()
        ids.append(token)
    return "".join(vocabulary.decode_bytes(ids).decode())


@pytest.mark.parametrize("highest", [False, True])
@pytest.mark.parametrize("text", TEXTS)
def test_whatever_a_schema_demands_can_be_said(
    tokenizer: Any, vocabulary: LLTokenizer, text: str, highest: bool
) -> None:
    lark = "start: %json " + json.dumps({"const": text}, ensure_ascii=False)
    assert json.loads(say(tokenizer, vocabulary, lark, highest)) == text


def test_only_what_the_tokenizer_calls_special_is_special(
    tokenizer: Any, vocabulary: LLTokenizer
) -> None:
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    ids = range(len(tokenizer))
    assert {i for i in ids if vocabulary.is_special_token(i)} == special


def test_bytes_are_what_the_tokenizer_decodes(tokenizer: Any, vocabulary: LLTokenizer) -> None:
    for text in [*TEXTS[2:], "a<>b"]:
        ids = tokenizer.encode("\n" + text, add_special_tokens=False)
        ids = [i for i in ids if i not in tokenizer.all_special_ids]
        said = vocabulary.decode_bytes(ids).decode("utf-8", "replace")
        assert said.strip(" ") == tokenizer.decode(ids).strip(" ")
