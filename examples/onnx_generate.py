"""An answer of an exported ONNX graph, with nothing of Loraloop.

python examples/onnx_generate.py FOLDER "Where is my order?" [FOLDER/adapters/NAME.onnx_adapter]

Needs onnxruntime, numpy and transformers (for the tokenizer). docs/export.md says what the inputs
mean. The cache is bound as input and output at once, so no step copies it.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import onnxruntime as ort
from transformers import AutoTokenizer

NUM_TOKENS = 64
CACHE_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def new_cache(session: Any, capacity: int) -> dict[str, Any]:
    """``N.key`` and ``N.value`` of one row, zeros."""
    cache = {}
    for entry in session.get_inputs():
        if entry.name.startswith("past_key_values."):
            _, heads, _, width = entry.shape
            zeros = np.zeros((1, heads, capacity, width), CACHE_TYPES[entry.type])
            name = entry.name.removeprefix("past_key_values.")
            cache[name] = ort.OrtValue.ortvalue_from_numpy(zeros)
    return cache


def next_token(
    session: Any, ids: list[int], start: int, cache: dict[str, Any], adapter: dict[str, Any]
) -> int:
    """The likeliest token behind ``ids``, which go to the places from ``start`` on."""
    capacity = next(iter(cache.values())).shape()[2]
    feeds = {
        "input_ids": [ids],
        "position_ids": [range(start, start + len(ids))],
        "cache_start": [start],
        "attention_mask": [[1] * capacity],  # later places are never seen; no padding here
        "logits_rows": [[len(ids) - 1]],
    }
    binding = session.io_binding()
    for name, values in feeds.items():
        binding.bind_cpu_input(name, np.array(values, np.int64))
    for name, value in cache.items():
        binding.bind_ortvalue_input(f"past_key_values.{name}", value)
        binding.bind_ortvalue_output(f"present.{name}", value)
    for name, value in adapter.items():  # active adapters of RunOptions do nothing with a binding
        binding.bind_ortvalue_input(name, value)
    binding.bind_output("logits")
    session.run_with_iobinding(binding)
    return int(binding.get_outputs()[-1].numpy()[0, 0].argmax())


def main(folder: str, question: str, adapter_file: str | None = None) -> list[int]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    session = ort.InferenceSession(f"{folder}/model.onnx")
    read = ort.AdapterFormat.read_adapter(adapter_file) if adapter_file else None
    adapter = read.get_parameters() if read else {}
    messages = [{"role": "user", "content": question}]
    new = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    cache, start = new_cache(session, len(new) + NUM_TOKENS), 0
    answer: list[int] = []
    while len(answer) < NUM_TOKENS:
        token = next_token(session, new, start, cache, adapter)
        if token == tokenizer.eos_token_id:
            break
        answer.append(token)
        start, new = start + len(new), [token]
    print(tokenizer.decode(answer))
    return answer


if __name__ == "__main__":
    main(*sys.argv[1:])
