"""What a single token says, for logprobs: its text and its bytes. Knows tokenizers, no HTTP."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

REPLACEMENT = "\ufffd"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenText:
    """Text and bytes of token ids; ids beyond the vocabulary say nothing."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._num_tokens = len(tokenizer)
        self.of = lru_cache(maxsize=50_000)(self._of)

    def _of(self, token_id: int) -> tuple[str, tuple[int, ...]]:
        """(text, bytes). Part of a character reads ``bytes:\\xe4``, as in OpenAI's answers."""
        if not 0 <= token_id < self._num_tokens:
            return "", ()
        text = str(self._tokenizer.decode([token_id], skip_special_tokens=False))
        if REPLACEMENT not in text:
            return text, tuple(text.encode())
        raw = raw_bytes(str(self._tokenizer.convert_ids_to_tokens(token_id)))
        if raw is None:
            return text, tuple(text.encode())
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw), tuple(raw)


def raw_bytes(token: str) -> bytes | None:
    """The bytes behind a vocabulary entry of a byte-level or byte-fallback tokenizer."""
    if match := _BYTE_TOKEN.fullmatch(token):
        return bytes([int(match[1], 16)])
    table = _byte_level_table()
    if all(char in table for char in token):
        return bytes(table[char] for char in token)
    return None


@lru_cache(maxsize=1)
def _byte_level_table() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes, inverted (Radford et al., 2019, encoder.py)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in plain}
    rest = [byte for byte in range(256) if byte not in plain]
    table.update({chr(256 + i): byte for i, byte in enumerate(rest)})
    return table
