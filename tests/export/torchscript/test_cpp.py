"""The traced module in C++: libtorch without Python, by the contract in docs/export.md alone."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from artifacts.exported.torchscript_model import MODEL_FILE
from export.source import Source, merged_model

PROGRAM = Path(__file__).parents[2] / "outside" / "torchscript.cpp"
PROMPTS = ([7], [5, 6, 7, 8, 9, 10, 11], [100, 50, 20], [9] * 12)
NUM_TOKENS = 24


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("g++") is None:
        pytest.skip("there is no g++")
    torch_folder = Path(torch.__file__).parent
    include, lib = torch_folder / "include", torch_folder / "lib"
    if not (include / "torch" / "script.h").is_file():
        pytest.skip("this torch has no headers")
    compiled = tmp_path_factory.mktemp("cpp") / "torchscript"
    command = ["g++", "-std=c++20", "-O0", str(PROGRAM), "-o", str(compiled)]
    command += [f"-I{include}", f"-I{include}/torch/csrc/api/include"]
    command += [f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"]
    command += [f"-L{lib}", f"-Wl,-rpath,{lib}", "-ltorch", "-ltorch_cpu", "-lc10"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return compiled


def run(program: Path, model: Path, prompts: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(program), str(model), str(NUM_TOKENS)],
        input=prompts,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@torch.no_grad()
def test_ragged_greedy_answers_are_those_of_transformers(
    program: Path, written: tuple[Path, Any], source: Source
) -> None:
    asked = "".join(" ".join(map(str, prompt)) + "\n" for prompt in PROMPTS)
    done = run(program, written[0] / MODEL_FILE, asked)
    assert done.returncode == 0, done.stderr
    found = [[int(token) for token in line.split()] for line in done.stdout.splitlines()]
    reference = merged_model(source)
    for prompt, answer in zip(PROMPTS, found, strict=True):
        ids = list(prompt)
        for _ in range(NUM_TOKENS):  # each row alone, read anew: no padding, no cache
            ids.append(int(reference(torch.tensor([ids])).logits[0, -1].argmax()))
        assert answer == ids[len(prompt) :]
    assert len({tuple(answer) for answer in found}) == len(PROMPTS)


@pytest.mark.slow
def test_what_is_no_model_is_said_in_a_line(program: Path, tmp_path: Path) -> None:
    (tmp_path / MODEL_FILE).write_bytes(b"nothing")
    done = run(program, tmp_path / MODEL_FILE, "1 2\n")
    assert done.returncode == 1
    assert done.stderr
