"""References made once: a tiny Llama with rsLoRA, a tiny Qwen2 whose biases count, and the embedded
base, whose perplexity says something. Each is asked a few short rows: two batches, so that answers
are padded on both sides."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from artifacts.base import EMBEDDED_BASE
from artifacts.heldout import HeldOutRow
from export.proof.logits_file import LogitsFile
from export.proof.prompts import find_questions
from export.proof.prove import Reference
from export.proof.reference import answer_all, load_reference, num_vectors, read_all
from export.source import Source, open_source
from tests.training.conftest import write_tokenizer

NUM_ROWS, NUM_TOKENS, NUM_STEPS = 10, 48, 9
TEA = Path(__file__).parents[3] / "examples" / "lantern-tea.jsonl"


@contextmanager
def reference_of(source: Source, folder: Path, prompts: Path | None = None) -> Iterator[Reference]:
    asked = find_questions(source, prompts, 32 if prompts is None else 288)
    short = sorted(asked.rows, key=lambda row: len(row.token_ids))[:NUM_ROWS]
    lengths = [min(len(row.token_ids), NUM_TOKENS - i) for i, row in enumerate(short)]
    rows = [
        HeldOutRow(row.token_ids[:n], min(row.num_prompt, n))
        for row, n in zip(short, lengths, strict=True)
    ]
    questions = replace(asked, rows=tuple(rows[::2] + rows[1::2]))
    vocab_size = source.base.config.vocab_size
    with LogitsFile(folder, vocab_size, num_vectors(questions, has_plain=False)) as file:
        model, ends = load_reference(source), source.base.eos_token_ids
        answers = [
            replace(
                each, greedy=each.greedy[:, :NUM_STEPS], is_answer=each.is_answer[:, :NUM_STEPS]
            )
            for each in answer_all(model, questions, ends, file, lambda _: None)
        ]
        with model.disable_adapter():
            firsts = read_all(model, questions, file, lambda _: None)
        yield Reference(source, questions, file, answers, [], firsts)


@pytest.fixture(scope="session")
def llama(
    tiny_base: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Reference]:
    source = open_source(str(adapter), str(tiny_base))
    with reference_of(source, tmp_path_factory.mktemp("llama")) as reference:
        yield reference


@pytest.fixture(scope="session")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reference]:
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen2Config, Qwen2ForCausalLM

    folder = tmp_path_factory.mktemp("qwen2")
    torch.manual_seed(2)
    config = Qwen2Config(
        vocab_size=write_tokenizer(folder / "base"),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=256,
        eos_token_id=257,
    )
    model = Qwen2ForCausalLM(config)
    for layer in model.model.layers:
        for linear in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
            torch.nn.init.normal_(linear.bias, std=0.02)
    model.save_pretrained(folder / "base")
    adapted = get_peft_model(
        model, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["v_proj"])
    )
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    adapted.save_pretrained(folder / "adapter")
    source = open_source(str(folder / "adapter"), str(folder / "base"))
    with reference_of(source, folder) as reference:
        yield reference


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reference]:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("embedded")
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(EMBEDDED_BASE)
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    adapted.save_pretrained(folder / "adapter")
    source = open_source(str(folder / "adapter"))
    with reference_of(source, folder, TEA) as reference:
        yield reference
