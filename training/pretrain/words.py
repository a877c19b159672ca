"""Word lists behind the slots, and the Chinese characters that the tokenizer must cover."""

from __future__ import annotations

from typing import Any

import yaml

from training.pretrain.grammar import PHRASES


def load_yaml(name: str) -> dict[str, Any]:
    """One of the YAML files beside the phrases."""
    content: dict[str, Any] = yaml.safe_load((PHRASES / name).read_text(encoding="utf-8"))
    return content


def common_characters() -> list[str]:
    """The 3,755 level-1 characters of GB 2312 (rows 16 to 55), derived from the codec itself."""
    characters = []
    for row in range(0xB0, 0xD8):
        for cell in range(0xA1, 0xFF):
            try:
                characters.append(bytes((row, cell)).decode("gb2312"))
            except UnicodeDecodeError:  # the last row is not full
                continue
    return characters


WORDS: dict[str, dict[str, list[str]]] = load_yaml("words.yaml")
