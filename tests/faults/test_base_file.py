"""The base's files change or vanish under a running server: it has its own copy of all it reads.

A page of a mapped file that is truncated kills the process with SIGBUS, all answers with it. So
nothing of the engine may be a view into a file once it is loaded.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from artifacts.base import open_base
from artifacts.init_base import init_base
from server.engine.load import EngineLimits, build_engine
from tests.conftest import TinyBase
from tests.server.engine.amx import needs_amx

REPOSITORY = Path(__file__).resolve().parents[2]
LIMITS = EngineLimits(kv_cache_tokens=64, max_batched_tokens=32)
FORMS: list[Any] = [
    # llama and qwen3 have an output product of their own, qwen3 norms of queries and keys
    ("llama", "float32", {}),
    ("llama", "bfloat16", {"kernels": "torch"}),
    ("qwen2", "float32", {}),
    ("qwen3", "bfloat16", {"kernels": "torch"}),
    ("llama", "float32", {"quantization": "nf4"}),
    ("llama", "bfloat16", {"quantization": "int8"}),
    pytest.param("qwen3", "bfloat16", {"kernels": "amx"}, marks=needs_amx),
]


def mapped(folder: Path) -> list[str]:
    """Files below ``folder`` that this process has mapped."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [line for line in lines if str(folder) in line]


@pytest.mark.parametrize(("family", "dtype", "options"), FORMS)
def test_no_form_of_the_engine_keeps_a_view_into_the_files(
    family: str, dtype: str, options: dict[str, Any], tmp_path: Path
) -> None:
    folder = init_base(f"tiny-{family}", tmp_path / "base", dtype=dtype)
    engine = build_engine(open_base(folder), limits=LIMITS, **options)
    assert mapped(folder) == []
    assert engine.kernels == options.get("kernels", "torch")


CHILD = """
import asyncio, sys
from pathlib import Path
from artifacts.base import open_base
from server.engine.load import EngineLimits, build_engine
from server.engine.request import GenerationRequest, SamplingParams

folder = Path(sys.argv[1])
engine = build_engine(open_base(folder), dtype="float32", limits=EngineLimits(kv_cache_tokens=256))
engine.start()

async def ask(name):
    sampling = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)
    # Ids from all over the vocabulary: their embeddings lie on many pages.
    prompt = tuple(range(3, 6000, 100))
    stream = engine.submit(GenerationRequest(name, prompt, sampling))
    return [token async for delta in stream for token in delta.token_ids]

async def main():
    before = await ask("before")
    for file in folder.glob("*.safetensors"):
        file.write_bytes(b"")
    assert await ask("after") == before
    print("alive")

asyncio.run(main())
engine.stop()
"""


def test_a_server_outlives_its_base_being_truncated(tiny_base: TinyBase, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(tiny_base("llama"), folder)
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder)], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr
