"""16K-token contexts and every rotary scaling: greedy ids equal transformers' (float32)."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from artifacts.base import EMBEDDED_BASE, open_base
from server.engine.load import EngineLimits, build_engine
from server.engine.request import Delta, GenerationRequest, SamplingParams

CONTEXT, NUM_NEW = 16384, 8
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "factor": 8.0}
ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {"rope_type": "llama3", **LLAMA3, "original_max_position_embeddings": 2048},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096},
    "yarn-attention": {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 2048,
        "attention_factor": 1.3,
        "beta_fast": 16.0,
    },
}


def make_base(folder: Path, rope: dict[str, Any]) -> Any:
    """A checkpoint of one narrow layer, and its reference."""
    config = LlamaConfig(
        vocab_size=6400,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_theta": 10000.0, **rope},
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # far positions must matter for the answer
            if parameter.ndim == 2:
                parameter.normal_(0.0, 0.3)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(EMBEDDED_BASE).save_pretrained(folder)
    return model


async def answer(folder: Path, prompt: list[int]) -> list[Delta]:
    limits = EngineLimits(max_batched_tokens=2048, kv_cache_tokens=CONTEXT, max_num_seqs=2)
    engine = build_engine(open_base(folder), dtype="float32", limits=limits)
    engine.start()
    try:
        sampling = SamplingParams(max_tokens=NUM_NEW, temperature=0, ignore_eos=True)
        stream = engine.submit(GenerationRequest("long", tuple(prompt), sampling))
        return [delta async for delta in stream]
    finally:
        await asyncio.to_thread(engine.stop)


@pytest.mark.parametrize(
    ("rope", "num_tokens"),
    [
        ("default", CONTEXT),
        ("yarn", CONTEXT),
        ("linear", 3000),
        ("llama3", 5000),
        ("yarn-attention", 5000),
    ],
)
async def test_a_long_prompt_in_chunks_answers_as_transformers(
    rope: str, num_tokens: int, tmp_path: Path
) -> None:
    model = make_base(tmp_path, ROPES[rope])
    generator = torch.Generator().manual_seed(1)
    prompt = torch.randint(0, 6000, (1, num_tokens - NUM_NEW), generator=generator)
    with torch.no_grad():
        expected = model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=NUM_NEW,
            do_sample=False,
            eos_token_id=None,
        )[0, prompt.shape[1] :].tolist()
    deltas = await answer(tmp_path, prompt[0].tolist())
    assert [t for d in deltas for t in d.token_ids] == expected
    assert len(set(expected)) > 1, "an answer that says something"
