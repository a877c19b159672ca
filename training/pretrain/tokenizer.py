"""The embedded base's own byte-level BPE: digits, capitals and Chinese characters stand alone.

One digit or capital, one token: an order number of any shape can be copied. One Chinese
character, at most one token: unseen wordings look like seen ones to a very small model, and
adapters trained on other Chinese text find every common character in the vocabulary. All 256
bytes are in the alphabet, so any text round-trips.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from artifacts.safe_write import write_bytes
from training.pretrain.corpus import Corpus
from training.pretrain.words import common_characters

BOS, END, PAD = "<|bos|>", "<|end|>", "<|pad|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
MARKS = ("<think>", "</think>", "<tools>", "</tools>", "<tool_call>", "</tool_call>")
NUM_RESERVED = 64
CHARACTER_REPEATS = 100  # outweighs chance merges, so that every common character is a token
SPECIAL_TOKENS = (
    PAD,
    BOS,
    END,
    *ROLES,
    *MARKS,
    *(f"<|reserved_{index}|>" for index in range(NUM_RESERVED)),
)
# Digits, Han characters and the letters of codes such as LK-77120 alone; words with the space
# before them; the rest in runs.
HAN, WORD = r"\p{Han}", r"[\p{L}&&[^\p{Lu}\p{Han}]]"
SPLIT = rf"\p{{N}}|{HAN}| ?\p{{Lu}}?{WORD}+|\p{{Lu}}| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s"


def train_tokenizer(seed: int, vocab_size: int, num_conversations: int) -> Tokenizer:
    """Train the tokenizer on the corpus and all common characters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(seed, num_conversations), trainer)
    return tokenizer


def _texts(seed: int, num_conversations: int) -> Iterator[str]:
    for conversation in Corpus(seed).pool(0, num_conversations):
        for message in conversation.messages:
            yield message.get("content") or ""
    characters = common_characters()
    for _ in range(CHARACTER_REPEATS):
        yield "".join(characters)


def save_tokenizer(tokenizer: Tokenizer, folder: Path, context: int) -> None:
    """Write tokenizer.json and tokenizer_config.json so that AutoTokenizer opens the folder."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": END,
        "pad_token": PAD,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
        "padding_side": "left",
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / "tokenizer.json", tokenizer.to_str(pretty=False).encode())
    write_bytes(folder / "tokenizer_config.json", (json.dumps(config, indent=2) + "\n").encode())
