"""Every form through the real command, proven in its fresh process, and served.

The embedded base in every form; tiny Llama, Qwen2 and Qwen3 shapes in the forms that differ most by
family, made and proven in this process, and in every form where there is time (slow). Random
adapters, so what is asserted of a quantised form is that its proof decided by its figures.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from openai import OpenAI

from artifacts.base import EMBEDDED_BASE, open_base
from artifacts.chat import ChatRenderer
from artifacts.exported.formats import FORMATS
from artifacts.exported.record import read_record
from artifacts.home import Home
from export import run
from export.proof.process import ProofAsk
from export.proof.report import Proof, read_proof
from export.proof.run import prove_all
from export.run import Asked
from server.app import create_app
from server.assembly import build_server
from server.engine.load import answer_decoder
from server.settings import Settings
from tests.server.conftest import serving
from tests.training.conftest import write_tokenizer

TINY = {  # every form at least once
    "llama": ("torchscript", "gguf-q8_0", "nf4"),
    "qwen2": ("adapter", "merged", "onnx-int4", "onnx-adapters", "gguf"),
    "qwen3": ("onnx", "onnx-int8", "int8", "gguf-q4_0"),
}
EXACT = ("adapter", "merged", "onnx", "onnx-adapters", "torchscript")  # in float32
ASK: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Where is my order 4711?"}],
    "temperature": 0,
    "max_tokens": 12,
    "extra_body": {"ignore_eos": True},
}


CASES = [
    *(("embedded", name) for name in FORMATS),
    *((family, name) for family, names in TINY.items() for name in names),
]
SERVED = [(family, name) for family, name in CASES if FORMATS[name].is_servable]


def tiny_shape(family: str, folder: Path) -> Path:
    """Two layers; biases for Qwen2, norms of queries and keys for Qwen3; an untied head."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        family,
        vocab_size=write_tokenizer(folder),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        bos_token_id=256,
        eos_token_id=257,
        pad_token_id=257,
        tie_word_embeddings=family == "qwen3",
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():  # zeros would hide a bias that is lost
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder)
    return folder


def random_adapter(base: Path, folder: Path) -> Path:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    config = LoraConfig(
        task_type="CAUSAL_LM", r=4, lora_alpha=6, target_modules="all-linear", use_rslora=True
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    model.save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Family:
    base: Path
    adapter: Path
    output: Path
    make: Callable[[], object]  # waits until everything is there

    def folder(self, name: str) -> Path:
        self.make()
        return self.output / name


def run_command(base: Path, adapter: Path, output: Path) -> None:
    """Every form, by ``loraloop export``."""
    command = [sys.executable, "-m", "loraloop", "export", str(adapter), "--model", str(base)]
    command += ["--output", str(output), "--allow-unverified"]
    for name in FORMATS:
        command += ["--format", name]
    env = {**os.environ, "LORALOOP_HOME": str(output.parent / "home"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr


def run_here(base: Path, adapter: Path, output: Path, names: tuple[str, ...]) -> None:
    """The same without the cost of processes of their own."""

    def prove(folders: Sequence[Path], ask: ProofAsk, progress: Any) -> list[Proof]:
        found: dict[Path, Proof] = {}
        prove_all(folders, ask, progress, found.__setitem__)
        return [found[folder] for folder in folders]

    asked = Asked(str(adapter), output, names, str(base), allow_unverified=True)
    with patch.object(run, "prove_in_fresh_process", prove):
        run.export_forms(asked, lambda *_: None)


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Family]]:
    """The command works beside the tests of the tiny shapes."""
    root = tmp_path_factory.mktemp("families")
    out = root / "embedded/out"
    adapter = random_adapter(EMBEDDED_BASE, root / "embedded/adapter")
    with ThreadPoolExecutor(1) as pool:
        command = pool.submit(run_command, EMBEDDED_BASE, adapter, out)
        found = {name: tiny_family(name, root, names) for name, names in TINY.items()}
        yield {**found, "embedded": Family(EMBEDDED_BASE, adapter, out, command.result)}


def tiny_family(name: str, root: Path, names: tuple[str, ...] = ()) -> Family:
    (root / name / "base").mkdir(parents=True)
    base = tiny_shape(name, root / name / "base")
    adapter, out = random_adapter(base, root / name / "adapter"), root / name / "out"
    make = cache(lambda: run_here(base, adapter, out, names))
    return Family(base, adapter, out, make)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("family", "name"), sorted(CASES, key=lambda case: case[0] == "embedded"))
def test_each_form_is_proven_on_what_lies_on_disk(
    families: dict[str, Family], family: str, name: str
) -> None:
    check_proof(families[family], name)


def check_proof(family: Family, name: str) -> None:
    folder = family.folder(name)
    record, proof = read_record(folder), read_proof(folder)
    assert proof is not None
    assert (record.format, record.adapter_id) == (name, "adapter")
    assert (proof.adapter_hash, proof.prompts.count >= 32) == (record.adapter_hash, True)
    over = [key for key, most in proof.tolerances.items() if not abs(proof.figures[key]) <= most]
    assert proof.passed == (not over), proof
    is_rounded = family.base == EMBEDDED_BASE and name == "merged"  # to bfloat16
    if name in EXACT and not is_rounded:
        assert proof.passed, proof.failures
        assert proof.figures["max_logit_diff"] <= 1e-4
    assert proof.is_allowed != proof.passed


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("family", "name"), SERVED)
def test_each_form_is_served_and_answers_as_what_was_exported(
    families: dict[str, Family], family: str, name: str, tmp_path: Path
) -> None:
    check_serving(families[family], name, tmp_path / "home")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", TINY)
def test_every_form_of_a_tiny_shape_through_the_command(name: str, tmp_path: Path) -> None:
    family = tiny_family(name, tmp_path)
    run_command(family.base, family.adapter, family.output)
    there = Family(family.base, family.adapter, family.output, lambda: None)
    for form in FORMATS.values():
        check_proof(there, form.name)
        if form.is_servable:
            check_serving(there, form.name, tmp_path / f"home-{form.name}")


def check_serving(family: Family, name: str, home: Path) -> None:
    folder = family.folder(name)
    settings = Settings(home=home, model=str(folder), num_threads=1)
    folders = [("random", family.adapter)] if name == "onnx-adapters" else []
    server = build_server(settings, Home.open(settings.home), folders)
    try:
        with (
            serving(create_app(server)) as live,
            OpenAI(base_url=live.url + "/v1", api_key="none", max_retries=0) as client,
        ):
            model = "random" if folders else server.base.id
            answer = client.chat.completions.create(model=model, **ASK).choices[0].message.content
            pieces = client.chat.completions.create(model=model, stream=True, **ASK)
            streamed = "".join(piece.choices[0].delta.content or "" for piece in pieces)
    finally:
        server.database.close()
    assert streamed == answer
    assert answer == expected(family, name)


def expected(family: Family, name: str) -> str:
    """What the export's own model says without the server; of exact forms, what PEFT says."""
    base = open_base(family.base)
    prompt = ChatRenderer(base.tokenizer).render_prompt(ASK["messages"])
    if name in EXACT and name != "merged":
        ids = reference_ids(family, prompt)
    else:
        ids = exported_ids(family.folder(name), prompt)
    return answer_decoder(base.tokenizer)(ids)


def reference_ids(family: Family, prompt: list[int]) -> list[int]:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(family.base, dtype=torch.float32)
    model = PeftModel.from_pretrained(plain, str(family.adapter)).eval()
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(ASK["max_tokens"]):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def exported_ids(folder: Path, prompt: list[int]) -> list[int]:
    from artifacts.exported.graph import GraphBatch
    from artifacts.exported.load import open_export

    model = open_export(folder, num_threads=1)
    capacity = len(prompt) + ASK["max_tokens"]
    cache = model.shape.new_cache(1, capacity)
    ids, new = list(prompt), list(prompt)
    for _ in range(ASK["max_tokens"]):
        start = len(ids) - len(new)
        mask = torch.zeros(1, capacity, dtype=torch.int64)
        mask[:, : len(ids)] = 1
        batch = GraphBatch(
            torch.tensor([new]),
            torch.arange(start, len(ids))[None],
            torch.tensor([start]),
            mask,
            torch.tensor([[len(new) - 1]]),
        )
        new = [int(model.run(batch, cache)[0, 0].argmax())]
        ids += new
    return ids[len(prompt) :]
