"""Greedy answers equal transformers' and PEFT's, alone and in any company (float32)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from artifacts.adapter import read_adapter
from artifacts.base import EMBEDDED_BASE, open_base
from server.engine.engine import Engine
from server.engine.load import EngineLimits, build_engine
from server.engine.request import GenerationRequest, SamplingParams

SIZES: dict[str, Any] = {
    "vocab_size": 6400,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SIZES),
    "llama-3-rope": LlamaConfig(**SIZES, rope_parameters=LLAMA3_ROPE, tie_word_embeddings=True),
    "llama-biased": LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES, tie_word_embeddings=True),
    "mistral": MistralConfig(**SIZES, sliding_window=None),
}
# Different ranks, targets and options: what one bank has to mix in one step.
ADAPTERS: list[dict[str, Any]] = [
    {"r": 4, "target_modules": ["q_proj", "v_proj"]},
    {"r": 8, "target_modules": "all-linear"},
    {"r": 16, "target_modules": ["k_proj", "down_proj"], "use_rslora": True},
    {"r": 2, "target_modules": ["gate_proj"], "lora_alpha": 32},
    {"r": 8, "target_modules": "all-linear", "rank_pattern": {"o_proj": 3, "up_proj": 12}},
    {"r": 5, "target_modules": ["up_proj", "o_proj"], "alpha_pattern": {"o_proj": 20}},
    {"r": 1, "target_modules": ["q_proj"]},
    {"r": 16, "target_modules": ["q_proj", "v_proj", "up_proj"], "layers_to_transform": [1]},
]
PROMPTS = [3, 17, 100, 64, 33, 1, 16, 250, 40]  # tokens; blocks are 16, a step takes at most 48


@dataclass
class World:
    """One family: the reference with its PEFT adapters, and our engine with the same."""

    reference: Any
    engine: Engine
    keys: list[str]

    def expected(self, prompt: list[int], adapter: int | None, num: int) -> list[int]:
        ids = torch.tensor([prompt])
        options = {"max_new_tokens": num, "do_sample": False, "eos_token_id": None}
        if adapter is not None:
            self.reference.set_adapter(f"a{adapter}")
        with torch.no_grad():
            if adapter is None:
                with self.reference.disable_adapter():
                    out = self.reference.generate(
                        input_ids=ids, attention_mask=torch.ones_like(ids), **options
                    )
            else:
                out = self.reference.generate(
                    input_ids=ids, attention_mask=torch.ones_like(ids), **options
                )
        tokens: list[int] = out[0, len(prompt) :].tolist()
        return tokens

    async def answer(self, prompt: list[int], adapter: int | None, num: int) -> list[int]:
        sampling = SamplingParams(max_tokens=num, temperature=0, ignore_eos=True)
        key = None if adapter is None else self.keys[adapter]
        name = request_id(prompt, adapter)
        stream = self.engine.submit(GenerationRequest(name, tuple(prompt), sampling, key))
        return [token async for delta in stream for token in delta.token_ids]


def request_id(prompt: list[int], adapter: int | None) -> str:
    return f"r{id(prompt)}-{adapter}"


def make_world(folder: Path, config: PretrainedConfig, dtype: str = "float32") -> World:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # lively enough for distinct answers
            around_one = parameter.ndim == 1 and name.endswith("norm.weight")
            parameter.normal_(1.0 if around_one else 0.0, 0.2 if parameter.ndim == 1 else 0.09)
    model.save_pretrained(folder / "base")
    AutoTokenizer.from_pretrained(EMBEDDED_BASE).save_pretrained(folder / "base")
    peft = None
    for i, options in enumerate(ADAPTERS):
        lora = LoraConfig(**{"lora_alpha": 16, "init_lora_weights": False, **options})
        if peft is None:
            peft = get_peft_model(model, lora, adapter_name=f"a{i}")
        else:
            peft.add_adapter(f"a{i}", lora)
    assert peft is not None
    peft.eval().save_pretrained(folder / "adapters")
    limits = EngineLimits(max_num_seqs=16, max_batched_tokens=48, kv_cache_tokens=8192)
    engine = build_engine(open_base(folder / "base"), dtype=dtype, limits=limits)
    engine.start()
    keys = []
    for i in range(len(ADAPTERS)):
        weights = read_adapter(folder / "adapters" / f"a{i}")
        engine.add_adapter(weights.content_hash, weights)
        keys.append(weights.content_hash)
    return World(peft, engine, keys)


@pytest.fixture(scope="module", params=list(CONFIGS))
def world(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    made = make_world(tmp_path_factory.mktemp(request.param), CONFIGS[request.param])
    yield made
    made.engine.stop()


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(0, 6000, (n,), generator=generator).tolist() for n in PROMPTS]


async def test_base_and_eight_adapters_answer_as_peft_alone_and_mixed(world: World) -> None:
    jobs = list(zip(prompts(), [None, *range(8)], strict=True))
    expected = [world.expected(prompt, adapter, 20) for prompt, adapter in jobs]
    assert len({tuple(e) for e in expected}) == len(jobs)
    alone = [await world.answer(prompt, adapter, 20) for prompt, adapter in jobs]
    assert alone == expected
    mixed = await asyncio.gather(*[world.answer(p, a, 20) for p, a in jobs])
    assert list(mixed) == expected
    # The same prompt under nine models at once: nobody may find another's cached keys.
    prompt = prompts()[2]
    same = await asyncio.gather(*[world.answer(prompt, a, 12) for a in [None, *range(8)]])
    assert list(same) == [world.expected(prompt, a, 12) for a in [None, *range(8)]]


async def test_base_and_eight_adapters_decode_in_one_forward_per_step(world: World) -> None:
    num_tokens = 24
    engine = world.engine
    before = engine.stats()
    prompt = prompts()[0]
    jobs = [world.answer([*prompt, i], a, num_tokens) for i, a in enumerate([None, *range(8)])]
    await asyncio.gather(*jobs)
    after = engine.stats()
    num_forwards = after.num_forward_passes - before.num_forward_passes
    assert num_forwards == after.num_steps - before.num_steps
    # Nine answers of 24 tokens; the last to be submitted may join a few steps after the first.
    assert num_tokens <= num_forwards <= num_tokens + 8
    assert after.kv_blocks_free == after.kv_blocks_total
    assert after.pinned_adapters == {}
