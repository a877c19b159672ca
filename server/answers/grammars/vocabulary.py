"""A base's tokens as llguidance sees them: what bytes each one says, and which say none.

llguidance can read tokenizer.json itself, but takes every token of the form ``<…>`` for a special
one, DeepSeek's ordinary ``<>`` among them, and cannot go on where a text demands it. Here only what
the tokenizer calls special is special.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from typing import Any

from llguidance import LLTokenizer, TokenizerWrapper

from server.answers.token_text import raw_bytes

SPACE = "▁"  # SentencePiece's
NO_TEXT = b"\xff"
NUM_KEPT, MAX_KEPT = 4096, 64  # texts whose ids are kept, bytes of one


def read_vocabulary(tokenizer: Any, vocab_size: int, eos_ids: Collection[int]) -> LLTokenizer:
    """Of a fast tokenizer. Takes half a second for 100,000 tokens."""
    words = _Words(tokenizer, min(eos_ids))
    return LLTokenizer(TokenizerWrapper(words), n_vocab=vocab_size, eos_token=sorted(eos_ids))


class _Words:
    """What llguidance's ``TokenizerWrapper`` asks for."""

    def __init__(self, tokenizer: Any, eos_token_id: int) -> None:
        self._backend = tokenizer.backend_tokenizer
        is_byte_level = "ByteLevel" in str(self._backend.decoder)
        names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        added = tokenizer.added_tokens_decoder
        self.eos_token_id = eos_token_id
        self.bos_token_id = tokenizer.bos_token_id
        self.special_token_ids = [i for i, token in added.items() if token.special]
        self._special = frozenset(self.special_token_ids)
        self.tokens = [
            _bytes_of(str(name), is_byte_level=is_byte_level or i in added)
            for i, name in enumerate(names)
        ]
        self._of_byte = {token: i for i, token in enumerate(self.tokens) if len(token) == 1}
        self._break = self._encode("\n")
        self._ids_of = lru_cache(NUM_KEPT)(self._find_ids)

    def __call__(self, text: bytes) -> list[int]:
        """The ids that a model is used to see for ``text``; some ids that say it if not those.

        Called while masks are made, and mostly for the same texts again: what a grammar demands.
        """
        return self._ids_of(text) if len(text) <= MAX_KEPT else self._find_ids(text)

    def _find_ids(self, text: bytes) -> list[int]:
        wanted = text.decode("utf-8", "replace")
        if self._says(ids := self._encode(wanted), text):
            return ids
        ids = self._encode("\n" + wanted)  # SentencePiece puts a space before what begins a string
        if self._says(ids := ids[len(self._break) :], text):
            return ids
        return [self._of_byte[bytes([byte])] for byte in text]

    def _encode(self, text: str) -> list[int]:
        return list(self._backend.encode_batch_fast([text], add_special_tokens=False)[0].ids)

    def _says(self, ids: list[int], text: bytes) -> bool:
        return self._special.isdisjoint(ids) and b"".join(self.tokens[i] for i in ids) == text


def _bytes_of(name: str, *, is_byte_level: bool) -> bytes:
    """Nothing for the byte that is in no text: llguidance writes special tokens with it."""
    if not is_byte_level and not name.startswith("<0x"):
        return name.replace(SPACE, " ").encode()
    raw = raw_bytes(name)
    found = name.encode() if raw is None else bytes(raw)
    return b"" if NO_TEXT in found else found
