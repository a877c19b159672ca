"""The machine's ceilings: how fast all threads together read memory and multiply matrices.

Run as a process of its own (``python -m server.bench.machine``), so that its buffers count
neither as the engine's memory nor against its caches; prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import mmap
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

READ_BYTES = 1 << 30  # as large as a 0.5B base: what a cache keeps of it, it keeps of the base
PRODUCTS = ((2048, 2048, 2048), (512, 2048, 4096), (512, 896, 4864))  # rows, in, out
REPEATS = 5


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What the machine does at best: bytes and floating-point operations per second."""

    read_bytes_s: float
    matmul_flop_s: float

    def best_of(self, other: Ceilings) -> Ceilings:
        """The higher of both: a noisy moment lowers a ceiling, nothing raises it."""
        return Ceilings(
            max(self.read_bytes_s, other.read_bytes_s),
            max(self.matmul_flop_s, other.matmul_flop_s),
        )


def measure_in_child(num_threads: int, dtype: str) -> Ceilings:
    """Measure in a process of its own. Raises RuntimeError with what it printed if it fails."""
    command = [sys.executable, "-m", "server.bench.machine"]
    command += ["--threads", str(num_threads), "--dtype", dtype]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"measuring the machine failed:\n{done.stderr}")
    return Ceilings(**json.loads(done.stdout.splitlines()[-1]))


def measure(num_threads: int, dtype: str) -> Ceilings:
    """Measure here: about a second, 1 GiB of memory."""
    import torch

    torch.set_num_threads(num_threads)
    return Ceilings(_read_bytes_s(), _matmul_flop_s(getattr(torch, dtype)))


def _read_bytes_s() -> float:
    """Best of three reductions over 1 GiB in huge pages. A sum is bound by its additions and
    reads a fifth slower than a maximum, which one instruction per vector computes."""
    import torch

    buffer = mmap.mmap(-1, READ_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        buffer.madvise(mmap.MADV_HUGEPAGE)
    block = torch.frombuffer(buffer, dtype=torch.uint8).fill_(0)
    views = [block.view(dtype) for dtype in (torch.float32, torch.int64, torch.int8)]
    return READ_BYTES / min(_best_s(view.max) for view in views)


def _matmul_flop_s(dtype: object) -> float:
    """Best over a few shapes, plain and with a prepacked weight: which is fastest differs."""
    import torch

    rates = []
    for rows, n_in, n_out in PRODUCTS:
        x = torch.ones((rows, n_in), dtype=dtype)  # type: ignore[call-overload]
        weight = torch.ones((n_out, n_in), dtype=dtype)  # type: ignore[call-overload]
        runs: list[Callable[[], object]] = [partial(torch.nn.functional.linear, x, weight)]
        if torch.backends.mkldnn.is_available():
            packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
            pointwise = torch.ops.mkldnn._linear_pointwise
            runs.append(partial(pointwise, x, packed, None, "none", [], ""))
        seconds = min(_best_s(run) for run in runs)
        rates.append(2 * rows * n_in * n_out / seconds)
    return max(rates)


def _best_s(run: Callable[[], object]) -> float:
    run()
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def main() -> None:
    """The process: options in, one line of JSON out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--dtype", required=True)
    options = parser.parse_args()
    print(json.dumps(asdict(measure(options.threads, options.dtype))))


if __name__ == "__main__":
    main()
