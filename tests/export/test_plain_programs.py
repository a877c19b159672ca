"""Exports where nothing of this project is: transformers and PEFT alone, ONNX Runtime alone."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from artifacts.base import EMBEDDED_BASE
from artifacts.models import copy_without_weights
from export.forms.adapter import ADAPTER
from export.forms.bitsandbytes import INT8, NF4
from export.forms.form import Form, Options, Workshop
from export.forms.merged import MERGED
from export.forms.onnx import FLOAT32
from export.forms.onnx_adapters import ADAPTERS
from export.source import open_source
from tests.export.families import random_adapter

ROOT = Path(__file__).parents[2]
PLAIN = ROOT / "tests" / "outside" / "plain_transformers.py"
QUESTION = "Where is my order 4711?"
# How far below the likeliest a token may be where weights and sums are rounded; in logits.
FORMS: dict[str, tuple[Form, float]] = {
    "merged": (MERGED, 0.1),
    "adapter": (ADAPTER, 1e-4),
    "nf4": (NF4, 1.0),
    "int8": (INT8, 0.3),
}


def below_the_best(adapter: Path | None, answer: list[int]) -> float:
    """How far at most a token of ``answer`` is below the likeliest, with ``adapter``."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_BASE)
    model = AutoModelForCausalLM.from_pretrained(EMBEDDED_BASE, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], add_generation_prompt=True, return_dict=False
    )
    with torch.no_grad():
        logits = model.eval()(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    chosen = logits.gather(1, torch.tensor(answer)[:, None])[:, 0]
    return float((logits.amax(1) - chosen).max())


@pytest.fixture(scope="module")
def strong(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """The embedded base and a random adapter that changes what it answers."""
    folder = random_adapter(EMBEDDED_BASE, tmp_path_factory.mktemp("adapters") / "strong")
    file = folder / "adapter_model.safetensors"
    sides = load_file(file)
    save_file({name: (10 if "lora_B" in name else 1) * side for name, side in sides.items()}, file)
    return Workshop(open_source(str(folder)), lambda *_: None)


@pytest.mark.slow
def test_transformers_and_peft_alone_answer_as_the_adapter(
    strong: Workshop, tmp_path: Path
) -> None:
    for name, (form, _) in FORMS.items():
        (tmp_path / name).mkdir()
        if form is not ADAPTER:
            copy_without_weights(strong.source.base, tmp_path / name)
        form.write(strong, Options(), tmp_path / name)
    command = [sys.executable, "-W", "ignore", str(PLAIN), str(EMBEDDED_BASE)]
    done = subprocess.run(
        [*command, *(str(tmp_path / name) for name in FORMS)],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])
    for (name, (_, allowed)), answer in zip(FORMS.items(), answers, strict=True):
        assert answer, name
        below = below_the_best(strong.source.folder, answer)
        assert below <= allowed, (name, below)
        assert below_the_best(None, answer) > 1, name


@pytest.mark.slow
@pytest.mark.parametrize("is_given", [False, True], ids=["merged", "adapter as a file"])
def test_the_example_for_onnxruntime_answers_as_the_adapter(
    strong: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str], *, is_given: bool
) -> None:
    from transformers import AutoTokenizer

    copy_without_weights(strong.source.base, tmp_path)
    (ADAPTERS if is_given else FLOAT32).write(strong, Options(), tmp_path)
    files = [str(path) for path in tmp_path.glob("adapters/*.onnx_adapter")]
    assert len(files) == is_given
    example = runpy.run_path(str(ROOT / "examples" / "onnx_generate.py"))
    found = example["main"](str(tmp_path), QUESTION, *files)
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_BASE)
    assert capsys.readouterr().out == tokenizer.decode(found) + "\n"
    assert below_the_best(strong.source.folder, found) <= 1e-4
    assert below_the_best(None, found) > 1
