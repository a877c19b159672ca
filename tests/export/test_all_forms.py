"""Every form of every family, exported, proven on what lies on the disk, and served.

The embedded base through the real command, with its proof in a fresh process; tiny Llama, Qwen2 and
Qwen3 shapes in this one (through the command: slow). Random adapters, so what is asserted of a
quantised form is that its proof decided by its figures.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from openai import OpenAI

from artifacts.base import EMBEDDED_BASE, open_base
from artifacts.chat import ChatRenderer
from artifacts.exported.formats import FORMATS
from artifacts.exported.record import read_record
from artifacts.home import Home
from export.proof.report import read_proof
from server.app import create_app
from server.assembly import build_server
from server.engine.load import answer_decoder
from server.settings import Settings
from tests.export.families import Family, embedded_family, run_command, tiny_family
from tests.server.conftest import serving

TINY = ("llama", "qwen2", "qwen3")
EXACT = ("adapter", "merged", "onnx", "onnx-adapters", "torchscript")  # in float32
ASK: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Where is my order 4711?"}],
    "temperature": 0,
    "max_tokens": 12,
    "extra_body": {"ignore_eos": True},
}


CASES = [(family, name) for family in ("embedded", *TINY) for name in FORMATS]
SERVED = [(family, name) for family, name in CASES if FORMATS[name].is_servable]


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Family]:
    root = tmp_path_factory.mktemp("families")
    tiny = {name: tiny_family(name, root, tuple(FORMATS)) for name in TINY}
    return {"embedded": embedded_family(root), **tiny}


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("family", "name"), CASES)
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
