"""GGUF files, and beside each what base and adapter answer in transformers and PEFT, float32.

``python -m tests.outside.write_expected OUT [ADAPTER]``: ``ADAPTER`` on the embedded base (a random
one without), and a tiny shape for each tokenizer rule that export names. A folder of OUT holds
``model-*.gguf``, ``base.gguf``, ``adapter.gguf`` and ``expected.npz``, for `check_llama_cpp.py`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, PretrainedConfig, Qwen2Config, Qwen3Config

from artifacts.base import EMBEDDED_BASE, load_transformers_model
from artifacts.chat import ChatRenderer
from export.forms.gguf import ADAPTER_FILE, F16, MODEL_FILE, Q4_0, Q8_0
from export.gguf.__main__ import write_base
from export.gguf.pretokenizer import _PROBES
from export.source import Source, open_source
from tests.export.families import random_adapter
from tests.export.gguf.conftest import FAMILIES, LLAMA3, SIZES, make_source, write
from tests.export.gguf.test_tokenizer import trained

STEPS = 32
TEMPLATE = EMBEDDED_BASE / "chat_template.jinja"
FORMS = {"f16": F16, "q8_0": Q8_0, "q4_0": Q4_0}
PROMPTS = (
    "Where is my order 20481?",
    "我的订单 20481 到哪里了？",
    "how do i return a broken lamp, please?",
    "请问怎么退货？",
    "Tell me a joke about tea.",
    "你好",
    "The parcel 7 is late by 12 days 😀",
    "我想改一下收货地址，可以吗？",
)
TEXTS = (
    *_PROBES,
    *PROMPTS,
    "I think I can. A cat? O no",
    " ",
    "\n\n\n",
    "   ",
    "\t\tx  y ",
    "e\u0301🏳️‍🌈\u200b",
    "<|bos|><|user|>hi<|end|>",
    "a<|end|>b <|assistant|> c",
)
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
YARN |= {"original_max_position_embeddings": 64}
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
TINY = SIZES | {"vocab_size": 520, "bos_token_id": 0, "eos_token_id": 1}


def _shapes() -> dict[str, tuple[PretrainedConfig, str]]:
    """Name → shape and tokenizer rule; between them all that export says of a model."""
    biased = {"attention_bias": True, "mlp_bias": True}
    return {
        "llama-llama3-biases": (LlamaConfig(**TINY, **biased, rope_parameters=LLAMA3), "llama-bpe"),
        "llama-yarn": (LlamaConfig(**TINY, rope_parameters=YARN), "deepseek-llm"),
        "llama-wide-heads": (LlamaConfig(**TINY, head_dim=32), "deepseek-coder"),
        "mistral": (type(FAMILIES["mistral"])(**TINY, sliding_window=None), "tekken"),
        "qwen2-tied": (Qwen2Config(**TINY, tie_word_embeddings=True), "qwen2"),
        "qwen2-linear": (Qwen2Config(**TINY, rope_parameters=LINEAR), "smaug-bpe"),
        "qwen3-yarn": (Qwen3Config(**TINY, head_dim=32, rope_parameters=YARN), "gpt-2"),
        "qwen3": (Qwen3Config(**TINY, head_dim=32), "smollm"),
    }


def _sources(out: Path, adapter: str | None) -> Iterator[tuple[str, Source]]:
    adapter = adapter or str(random_adapter(EMBEDDED_BASE, out / "adapter"))
    yield "embedded", open_source(adapter)
    for name, (config, rule) in _shapes().items():
        folder = out / "bases" / name
        folder.mkdir(parents=True)
        yield name, make_source(config, folder, partial(_write_tokenizer, rule))


def _write_tokenizer(rule: str, folder: Path) -> None:
    tokenizer = trained(rule, folder)
    tokenizer.chat_template = TEMPLATE.read_text(encoding="utf-8")
    tokenizer.save_pretrained(folder)


def write_case(source: Source, folder: Path) -> None:
    folder.mkdir()
    settings: dict[str, Any] = {}
    for name, form in FORMS.items():
        path = folder / name
        path.mkdir()
        _, settings = write(form, source, path)
        (path / MODEL_FILE).rename(folder / f"model-{name}.gguf")
        (path / ADAPTER_FILE).rename(folder / ADAPTER_FILE)
        for rest in path.iterdir():
            rest.unlink()
        path.rmdir()
    write_base(source.base, folder / "base.gguf", lambda *_: None)
    np.savez(folder / "expected.npz", **_expected(source, settings["pre_tokenizer_is"]))


@torch.no_grad()
def _expected(source: Source, rule_is: str) -> dict[str, Any]:
    from peft import PeftModel

    plain = load_transformers_model(source.base, torch.float32)
    model = PeftModel.from_pretrained(plain, str(source.folder)).eval()
    tokenizer, renderer = source.base.tokenizer, ChatRenderer(source.base.tokenizer)
    chats, found = [], {}
    for number, question in enumerate(PROMPTS):
        messages = [{"role": "user", "content": question}]
        prompt = renderer.render_prompt(messages)
        ids = list(prompt)
        for _ in range(STEPS):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        found[f"logits{number}"] = model(torch.tensor([ids])).logits[0].numpy()
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        chats.append({"messages": messages, "text": text, "num_prompt": len(prompt), "ids": ids})
    said = {
        "rule_is": rule_is,
        "ends": sorted(source.base.eos_token_ids),
        "texts": [
            {"text": text, "ids": _ids(tokenizer, text), "raw": _ids(tokenizer, text, True)}
            for text in TEXTS
        ],
        "chats": chats,
    }
    return {"said": np.array(json.dumps(said)), **found}


def _ids(tokenizer: Any, text: str, split_special_tokens: bool = False) -> list[int]:
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = split_special_tokens
    try:
        ids: list[int] = backend.encode(text, add_special_tokens=False).ids
    finally:
        backend.encode_special_tokens = False
    return ids


def main() -> None:
    out = Path(sys.argv[1])
    out.mkdir()
    for name, source in _sources(out, sys.argv[2] if len(sys.argv) > 2 else None):
        write_case(source, out / name)
        print(name, flush=True)


if __name__ == "__main__":
    main()
