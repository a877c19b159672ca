"""A base with random weights at a real shape, made once and kept under the home.

It differs from what ``loraloop init-base`` writes, so that any server can be measured on it from
outside: every token id has a text of its own (a server that streams text would otherwise send
nothing for most random tokens, and its first token could not be seen); no token ends an answer; and
chats are written as Qwen writes them (transformers serve looks for that in any model of the family
and sends the whole prompt back as a first piece of text where it finds it not).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from artifacts.home import Home
from artifacts.init_base import SHAPES, init_base
from artifacts.safe_write import publish_folder, write_json

FOLDER = "bench"
CHATML = """{% for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
SPACE = "\u0120"  # how byte-level vocabularies write a leading space


def cached_base(shape: str, home: Home) -> Path:
    """The folder of ``shape``, made now if it is not there: seconds for 0.5B, a minute for 7B.

    Raises InvalidInput for an unknown shape.
    """
    folder = home.root / FOLDER / shape
    if folder.is_dir():
        return folder
    scratch = home.tmp / f"{FOLDER}-{shape}"
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        init_base(shape, scratch)
        _open_up(scratch)
        folder.parent.mkdir(parents=True, exist_ok=True)
        publish_folder(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def _open_up(folder: Path) -> None:
    """What other servers need, see above."""
    config = _read(folder / "config.json")
    tokenizer = with_all_ids(_read(folder / "tokenizer.json"), config["vocab_size"])
    write_json(folder / "tokenizer.json", tokenizer)
    generation = _read(folder / "generation_config.json")
    write_json(folder / "generation_config.json", generation | {"eos_token_id": None})
    (folder / "chat_template.jinja").write_text(CHATML, encoding="utf-8")
    write_json(folder / "config.json", config | {"eos_token_id": None})


def is_shape(config: Any, shape: str) -> bool:
    """Whether a base has this shape, whoever made it."""
    wanted = SHAPES[shape]
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    return all(getattr(config, key) == wanted.get(key) for key in sizes)


def with_all_ids(tokenizer: dict[str, Any], vocab_size: int) -> dict[str, Any]:
    """A byte-level BPE tokenizer whose ids reach ``vocab_size``; new ones are never produced by
    encoding, since no merge leads to them."""
    vocab = dict(tokenizer["model"]["vocab"])
    used = {*vocab.values(), *(token["id"] for token in tokenizer["added_tokens"])}
    vocab |= {f"{SPACE}w{i}": i for i in range(vocab_size) if i not in used}
    return tokenizer | {"model": tokenizer["model"] | {"vocab": vocab}}


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
