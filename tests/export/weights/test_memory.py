"""What an export holds in memory is a file of its output and a layer, however large the base is.

But for a calibration, which has the whole model.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from artifacts.base import tensor_files
from tests.training.conftest import write_tokenizer

SHARD_BYTES = 12_000_000
FORMATS = ("merged", "nf4", "int8")


@pytest.fixture(scope="module")
def large_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """68 MB in bfloat16, 8 layers of 8.4 MB."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("bases") / "large"
    config = LlamaConfig(
        vocab_size=write_tokenizer(folder),
        hidden_size=512,
        intermediate_size=2048,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=8,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    torch.manual_seed(0)
    noise = torch.randn(1 << 20).mul_(0.02).to(torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.view(-1).copy_(noise.repeat(1 + parameter.numel() // (1 << 20))[
                : parameter.numel()
            ])  # fmt: skip
    model.save_pretrained(folder, max_shard_size=SHARD_BYTES)
    assert len(tensor_files(folder)) >= 4
    return folder


def lora_of(base: Path, folder: Path) -> Path:
    """On every linear layer, so that no weight stays as it is."""
    from artifacts.architecture import linear_shapes
    from artifacts.base import open_base
    from training.methods.plain_lora import write_adapter

    opened = open_base(base)
    pairs = {
        module: (torch.full((2, inner), 0.01), torch.full((out, 2), 0.01))
        for module, (out, inner) in linear_shapes(opened.config).items()
    }
    folder.mkdir()
    write_adapter(folder, opened, pairs, dict.fromkeys(pairs, 4.0))
    return folder


def anonymous_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0  # it has ended


def peaks(base: Path, adapter: Path, output: Path, shard_bytes: int) -> dict[str, int]:
    """Of each format, the most that a process of its own had above what its imports took."""
    asked = [str(base), str(adapter), str(output), str(shard_bytes), *FORMATS]
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.export.weights.memory_child", *asked],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert child.stdin is not None
    assert child.stdout is not None
    found: dict[str, int] = {}
    with child:
        assert child.stdout.readline() == "ready\n"
        baseline = anonymous_bytes(child.pid)
        for name in FORMATS:
            is_done = threading.Event()
            seen = [0]

            def watch(is_done: threading.Event = is_done, seen: list[int] = seen) -> None:
                while not is_done.is_set():
                    seen.append(anonymous_bytes(child.pid))
                    time.sleep(0.002)

            watcher = threading.Thread(target=watch)
            watcher.start()
            child.stdin.write("\n")
            child.stdin.flush()
            said = child.stdout.readline()
            is_done.set()
            watcher.join()
            assert said in ("ready\n", "done\n")
            found[name] = max(seen) - baseline
    assert child.returncode == 0
    return found


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="RssAnon is Linux's")
def test_a_file_and_a_layer_is_all_that_is_held(large_base: Path, tmp_path: Path) -> None:
    adapter = lora_of(large_base, tmp_path / "adapter")
    found = peaks(large_base, adapter, tmp_path, SHARD_BYTES)
    layer = 2 * (4 * 512 * 512 + 3 * 512 * 2048)
    for name in FORMATS:
        files = list((tmp_path / name).glob("*.safetensors"))
        assert len(files) >= (4 if name == "merged" else 2)
        assert found[name] <= 1.3 * max(file.stat().st_size for file in files) + layer, found
