"""Peak memory of an engine that does nothing else, in a process of its own.

``python -m server.bench.memory``: builds the engine, runs 16 streams, and prints one line of JSON.
The KV cache is asked for at the size that the traffic needs, so that reserved and used are one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from server.bench.figure import Figure, at_most, fixed
from server.bench.run import Run

NUM_STREAMS, PROMPT, NEW = 16, 128, 32
ROOM = 2  # blocks beyond the traffic's own
MIB = 1 << 20


def peak_bytes() -> int:
    """The process's largest resident size so far (Linux)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM: peak memory is measured on Linux only")


async def measure(model: str | None, dtype: str, threads: int | None) -> dict[str, int]:
    """Run the traffic here; bytes resident at most, and the KV cache's."""
    from artifacts.base import open_base
    from server.bench.traffic import WARM_UP, Setup
    from server.engine.load import EngineLimits

    limits = EngineLimits(num_threads=threads)
    limits = replace(limits, kv_cache_tokens=NUM_STREAMS * (PROMPT + NEW) + 16 * ROOM)
    base = open_base(model)
    if limits.max_model_len is None:
        limits = replace(limits, max_model_len=min(base.context_length, WARM_UP + 2))
    async with Setup(base, dtype, limits).client() as client:
        loaded = peak_bytes()
        await client.burst([None] * NUM_STREAMS, PROMPT, NEW)
        return {
            "loaded": loaded,
            "peak": peak_bytes(),
            "kv": client.engine.stats().kv_bytes,
        }


def memory(run: Run) -> list[Figure]:
    """Group ``memory``: the peak beside weights and KV cache, and what is over both."""
    command = [sys.executable, "-m", "server.bench.memory", "--dtype", run.setup.dtype]
    command += ["--model", str(run.setup.base.path)]
    if run.setup.limits.num_threads is not None:
        command += ["--threads", str(run.setup.limits.num_threads)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"the memory row failed:\n{done.stderr}")
    found = json.loads(done.stdout.splitlines()[-1])
    weights = run.cost.stored_bytes
    owed = (weights + found["kv"]) / MIB
    peak = found["peak"] / MIB
    details = {"weights_mib": weights / MIB, "kv_mib": found["kv"] / MIB}
    details["loaded_mib"] = found["loaded"] / MIB
    return [
        Figure("memory", "peak memory, 16 streams", "MiB", (peak,), fixed(owed), None, details),
        Figure("memory_over", "the same beyond weights and KV", "MiB", (peak - owed,), None,
               at_most(600)),
    ]  # fmt: skip


def main() -> None:
    """The process: options in, one line of JSON out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=None)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=None)
    options = parser.parse_args()
    print(json.dumps(asyncio.run(measure(options.model, options.dtype, options.threads))))


if __name__ == "__main__":
    main()
