"""A tiny random base with the embedded base's chat template, and small data files for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from artifacts.base import EMBEDDED_BASE

SPECIALS = ["<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"]


def write_tokenizer(folder: Path) -> int:
    """A byte-level tokenizer without merges: any text, no training. Returns its size."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIALS])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=SPECIALS[0],
        eos_token=SPECIALS[1],
        pad_token=SPECIALS[1],
    )
    fast.chat_template = (EMBEDDED_BASE / "chat_template.jinja").read_text(encoding="utf-8")
    fast.save_pretrained(folder)
    return len(fast)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers, hidden 64, grouped-query attention, context 256."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("bases") / "tiny"
    config = LlamaConfig(
        vocab_size=write_tokenizer(folder),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=256,
        eos_token_id=257,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def rows(count: int) -> list[dict[str, str]]:
    """Alpaca rows with something to learn: the answer follows from the question."""
    return [
        {"instruction": f"What is {i}?", "output": f"It is the number {i}, as you said."}
        for i in range(count)
    ]


@pytest.fixture
def settings(tmp_path: Path, tiny_base: Path) -> dict[str, Any]:
    """A run of a few seconds: 40 rows, 16 steps."""
    data = tmp_path / "rows.json"
    data.write_text(json.dumps(rows(40)), encoding="utf-8")
    return {
        "name": "tiny",
        "base": str(tiny_base),
        "home": str(tmp_path / "home"),
        "output_dir": str(tmp_path / "run"),
        "data": [str(data)],
        "epochs": 4,
        "rank": 4,
        "learning_rate": 0.01,
        "eval_steps": 4,
        "early_stopping_patience": None,
        "logging_steps": 2,
    }


class Recorder:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def emit(self, event: dict[str, Any]) -> None:
        self.events.append(event)

    def close(self) -> None:
        pass

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == kind]
