"""How fast an export is, how long it takes to load, and what memory it takes on top.

``python -m export.proof.measure DIR --batch 1 8`` measures one in a process of its own and prints
JSON. Times are wall-clock seconds on this machine; prompts of their own length, greedy answers.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TypeVar

import psutil
import torch

from artifacts.errors import LoraloopError
from artifacts.exported.formats import format_named
from artifacts.exported.graph import AdapterInputs, ExportedModel
from artifacts.exported.record import read_record
from export.proof.stream import Stream

T = TypeVar("T")
Batches = Sequence[int]
DECODE_STEPS = 32
_WARM_UP = 2  # calls of each kind before the clock starts
_WEIGHTS = (".safetensors", ".onnx", ".data", ".ts", ".pt2", ".gguf", ".onnx_adapter", ".bin")


def measure(
    model: ExportedModel,
    prompts: Sequence[Sequence[int]],
    *,
    batches: Batches = (1, 8),
    steps: int = DECODE_STEPS,
    adapter: AdapterInputs | None = None,
) -> dict[str, float]:
    """``ttft_p50_s``, ``ttft_p90_s`` of one prompt at a time; ``tokens_per_s_{batch}`` of decoding.

    Decoding is timed from the first step behind the prompts' prefill on, which counts for TTFT.
    """
    for prompt in prompts[:_WARM_UP]:
        _first_token(model, prompt, adapter)
    times = [_first_token(model, prompt, adapter) for prompt in prompts]
    found = {"ttft_p50_s": statistics.median(times), "ttft_p90_s": _percentile(times, 0.9)}
    for size in batches:
        rows = [prompts[i % len(prompts)] for i in range(size)]
        found[f"tokens_per_s_{size}"] = size / _step_time(model, rows, steps, adapter)
    return found


def measure_load(load: Callable[[], T]) -> tuple[T, dict[str, float]]:
    """What ``load`` returns, and ``load_s``. Files that were just written are in the disk cache."""
    start = time.perf_counter()
    found = load()
    return found, {"load_s": time.perf_counter() - start}


def sizes(folder: Path) -> dict[str, float]:
    """``weights_bytes``: files that hold the model; ``size_bytes``: the whole folder."""
    files = {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    weights = sum(size for path, size in files.items() if path.name.endswith(_WEIGHTS))
    return {"weights_bytes": float(weights), "size_bytes": float(sum(files.values()))}


class PeakMemory:
    """The process's resident peak above what it held when this was made. Linux's own mark.

    Where the mark cannot be reset, the peak since the process began stands in: an upper bound.
    """

    def __init__(self) -> None:
        _give_back_freed()
        self._before = int(psutil.Process().memory_info().rss)
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")

    def so_far(self) -> int:
        """Bytes."""
        now = int(psutil.Process().memory_info().rss)
        return max(now, _high_water_mark(), self._before) - self._before


def _first_token(
    model: ExportedModel, prompt: Sequence[int], adapter: AdapterInputs | None
) -> float:
    start = time.perf_counter()
    Stream(model, [prompt], room=1, adapter=adapter).prefill_last().argmax(-1)
    return time.perf_counter() - start


def _step_time(
    model: ExportedModel,
    rows: Sequence[Sequence[int]],
    steps: int,
    adapter: AdapterInputs | None,
) -> float:
    """Median seconds of a decode step: what else the machine does for a moment does not count."""
    stream = Stream(model, rows, room=steps + _WARM_UP, padding="right", adapter=adapter)
    tokens = stream.prefill_last().argmax(-1)
    times = []
    for _ in range(steps + _WARM_UP):
        start = time.perf_counter()
        tokens = stream.feed(tokens).argmax(-1)
        times.append(time.perf_counter() - start)
    return statistics.median(times[_WARM_UP:])


def _percentile(values: Sequence[float], share: float) -> float:
    return float(torch.tensor(values, dtype=torch.float64).quantile(share))


def _high_water_mark() -> int:
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def _give_back_freed() -> None:
    """Pages of tensors that are gone: what is loaded next would take them and count as nothing."""
    gc.collect()
    with suppress(OSError, AttributeError):  # glibc's alone
        ctypes.CDLL(None).malloc_trim(0)


def measure_folder(
    folder: Path,
    *,
    batches: Batches = (1, 8),
    steps: int = DECODE_STEPS,
    prompt_tokens: int = 128,
    num_prompts: int = 8,
    num_threads: int | None = None,
) -> dict[str, float]:
    """All of one export, on tokens drawn at random: the same ones for every form of one base.

    Raises Corrupt and InvalidInput, also for ``adapter``, which is no model without its base.
    """
    from artifacts.exported.load import open_export
    from export.proof.candidate import packed_adapter

    if num_threads is not None:
        torch.set_num_threads(num_threads)
    _import_runtime(folder)
    memory = PeakMemory()
    model, found = measure_load(lambda: open_export(folder, num_threads=num_threads))
    adapter = packed_adapter(model, folder)
    draw = torch.Generator().manual_seed(0)
    size = (num_prompts, prompt_tokens)
    prompts = torch.randint(model.shape.vocab_size, size, generator=draw).tolist()
    found |= measure(model, prompts, batches=batches, steps=steps, adapter=adapter)
    return {**sizes(folder), **found, "peak_memory_bytes": float(memory.so_far())}


def _import_runtime(folder: Path) -> None:
    """Libraries beforehand: what is measured is the model, not Python's imports."""
    if format_named(read_record(folder).format).runtime == "onnx":
        with suppress(ModuleNotFoundError):  # opening the export says so in our words
            import_module("onnxruntime")
        return
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    import_module("artifacts.exported.transformers_model")
    MODEL_FOR_CAUSAL_LM_MAPPING[type(AutoConfig.from_pretrained(folder, local_files_only=True))]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m export.proof.measure", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--steps", type=int, default=DECODE_STEPS)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--prompts", type=int, default=8, help="how many, for TTFT")
    parser.add_argument("--threads", type=int, default=None)
    asked = parser.parse_args(arguments)
    counts = [*asked.batch, asked.steps, asked.prompt_tokens, asked.prompts]
    if min(counts) < 1 or (asked.threads is not None and asked.threads < 1):
        parser.error("every count must be at least 1")
    try:
        found = measure_folder(
            asked.folder,
            batches=asked.batch,
            steps=asked.steps,
            prompt_tokens=asked.prompt_tokens,
            num_prompts=asked.prompts,
            num_threads=asked.threads,
        )
    except LoraloopError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps({"format": read_record(asked.folder).format, **found}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
