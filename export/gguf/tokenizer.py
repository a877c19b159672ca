"""A byte-level BPE tokenizer as GGUF holds it: tokens, kinds, merges, special ids, template."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from gguf import GGUFWriter, TokenType

from artifacts.base import Base
from artifacts.errors import InvalidInput
from export.gguf.pretokenizer import find_rule


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """``tokens`` by id; a normal one is spelled in the byte alphabet, an added one as it reads."""

    tokens: list[str]
    kinds: list[TokenType]
    merges: list[str]


def check_tokenizer(base: Base) -> None:
    """Raises InvalidInput for anything but byte-level BPE."""
    backend = getattr(base.tokenizer, "backend_tokenizer", None)
    spec = {} if backend is None else _spec(base)
    model = spec.get("model") or {}
    is_byte_level = "ByteLevel" in json.dumps(spec.get("decoder"))
    if model.get("type") != "BPE" or model.get("byte_fallback") or not is_byte_level:
        raise InvalidInput(
            f"{base.path}: its tokenizer is no byte-level BPE, which is what GGUF is written for "
            "here; choose another format, or convert the merged folder with llama.cpp",
            param="format",
        )
    last = max(base.tokenizer.get_vocab().values())
    if last >= base.config.vocab_size:
        raise InvalidInput(
            f"{base.path}: the tokenizer has a token {last}, the model only "
            f"{base.config.vocab_size}; choose another format",
            param="format",
        )


def add_tokenizer(writer: GGUFWriter, base: Base) -> dict[str, Any]:
    """Returns what was chosen where GGUF has no words for what tokenizer.json says."""
    spec, tokenizer = _spec(base), base.tokenizer
    found = vocabulary(spec, base.config.vocab_size)
    rule, certainty = find_rule(spec)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(rule)
    writer.add_token_list(found.tokens)
    writer.add_token_types(found.kinds)
    if found.merges:  # an empty list has no element type, and the format wants one
        writer.add_token_merges(found.merges)
    for name in ("bos", "eos", "pad", "unk"):
        token_id = getattr(tokenizer, f"{name}_token_id")
        if token_id is not None:
            getattr(writer, f"add_{name}_token_id")(token_id)
    others = sorted(base.eos_token_ids - {tokenizer.eos_token_id})
    if others:
        writer.add_eot_token_id(others[0])
    ids = tokenizer("a")["input_ids"]
    writer.add_add_bos_token(ids[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(ids[-1] == tokenizer.eos_token_id)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)
    left_out = []
    if spec["normalizer"] is not None:
        left_out.append(f"normalizer {spec['normalizer']['type']}: llama.cpp has none for BPE")
    if others[1:]:
        left_out.append(f"ends of an answer: tokens {others[1:]}")
    chosen: dict[str, Any] = {"pre_tokenizer": rule, "pre_tokenizer_is": certainty}
    return chosen | ({"left_out": left_out} if left_out else {})


def vocabulary(spec: dict[str, Any], size: int) -> Vocabulary:
    """``size``: rows of the embedding; ids without a token become unused ones."""
    tokens = [f"[PAD{i}]" for i in range(size)]
    kinds = [TokenType.UNUSED] * size
    for token, i in spec["model"]["vocab"].items():
        tokens[i], kinds[i] = token, TokenType.NORMAL
    for added in spec["added_tokens"]:
        i = added["id"]
        tokens[i] = added["content"]
        kinds[i] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    merges = [m if isinstance(m, str) else " ".join(m) for m in spec["model"]["merges"]]
    return Vocabulary(tokens, kinds, merges)


def _spec(base: Base) -> dict[str, Any]:
    spec: dict[str, Any] = json.loads(base.tokenizer.backend_tokenizer.to_str())
    return spec
