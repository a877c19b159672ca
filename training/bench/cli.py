"""``loraloop bench train``: contenders in turns, each in a process of its own."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

CONTENDERS = {
    "loraloop": ("ours", {}),
    "TRL SFTTrainer": ("trl", {}),
    "loraloop, packing": ("ours", {"packing": True}),
    "TRL SFTTrainer, packing": ("trl", {"packing": True}),
}


def bench_train(
    base: Annotated[str, typer.Option(help="folder of a base; see `loraloop init-base`")],
    data: Annotated[Path, typer.Option(help="supervised rows in any form that training reads")],
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16")] = "bfloat16",
    batch_size: Annotated[int, typer.Option(min=1, help="rows per step")] = 8,
    max_length: Annotated[int, typer.Option(help="packing fills batch-size × this")] = 256,
    steps: Annotated[int, typer.Option(min=4, help="the first three are left out")] = 12,
    rounds: Annotated[int, typer.Option(min=1, help="each contender runs once per round")] = 3,
    only: Annotated[list[str] | None, typer.Option(help="contenders, by name")] = None,
) -> None:
    """Tokens/s and peak memory of training steps beside plain TRL: same rows, adapter, dtype."""
    chosen = {name: CONTENDERS[name] for name in only or CONTENDERS}
    results: dict[str, list[dict[str, float]]] = {name: [] for name in chosen}
    with tempfile.TemporaryDirectory(prefix="loraloop-bench-") as home:
        settings = {
            "name": "bench", "base": base, "data": str(data), "home": home, "dtype": dtype,
            "batch_size": batch_size, "max_length": max_length, "max_steps": steps,
            "split": [0.98, 0, 0.02], "early_stopping_patience": None, "trackers": [],
            "learning_rate": 1e-4, "near_duplicates": "off",
        }  # fmt: skip
        for number in range(1, rounds + 1):
            for name, (kind, more) in chosen.items():
                figures = _run(kind, settings | more)
                results[name].append(figures)
                typer.echo(f"round {number}, {name}: {_shown(figures)}", err=True)
    medians = {
        name: {key: statistics.median(f[key] for f in found) for key in found[0]}
        for name, found in results.items()
    }
    for name, figures in medians.items():
        typer.echo(f"{name:26} {_shown(figures)}")
    typer.echo(json.dumps(medians))


def _run(kind: str, settings: dict[str, Any]) -> dict[str, float]:
    command = [sys.executable, "-m", "training.bench.contender", kind, json.dumps(settings)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise typer.BadParameter(f"{kind} failed:\n{done.stderr[-3000:]}")
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def _shown(figures: dict[str, float]) -> str:
    return (
        f"{figures['tokens_per_s']:7.0f} tokens/s  {figures['rows_per_s']:6.1f} rows/s  "
        f"peak {figures['peak_bytes'] / 2**30:.2f} GiB"
    )
