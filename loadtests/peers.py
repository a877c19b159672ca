"""Our server beside others in one run, taking turns: ``python -m loadtests.peers --model DIR``.

Starts each of ``--peers`` on the same base, and takes in servers that already run (``--url``).
Every row of every round is measured on one server after the other while the rest are paused; what
counts is the ratio within a round. Prints a table; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from loadtests.bench import (
    FAILURES,
    add_load_options,
    chosen_loads,
    chosen_seed,
    positive,
    remarks,
    summary,
)
from loadtests.contenders import NAMES, commit, processor, spec_of, versions
from loadtests.measure import Load, Sample, Target, open_target
from loadtests.servers import ROOT, CannotStart, Running, end_on_sigterm, running

JSON = dict[str, Any]
Samples = dict[str, dict[str, list[Sample]]]  # row's key → server's name → one per round


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m loadtests.peers",
        description="Measure several servers on one base, taking turns, and print ratios.",
    )
    made.add_argument("--model", type=Path, default=None, help="base folder; default: of --shape")
    made.add_argument("--shape", default="qwen2.5-0.5b", help="random base to make [qwen2.5-0.5b]")
    made.add_argument(
        "--peers", default=",".join(NAMES), help=f"which to start [{','.join(NAMES)}]"
    )
    made.add_argument(
        "--url", action="append", default=[], metavar="NAME=URL", help="one more that runs already"
    )
    made.add_argument("--threads", type=positive, default=os.cpu_count(), help="of each server")
    made.add_argument("--rounds", type=positive, default=3, help="the median is shown [3]")
    made.add_argument("--json", type=Path, default=None, help="also write the JSON to this file")
    add_load_options(made)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    options = parser().parse_args(arguments)
    names = [name for name in options.peers.split(",") if name]
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        print(f"--peers {','.join(unknown)}: known are {', '.join(NAMES)}", file=sys.stderr)
        return 2
    try:
        report = compare(options, names)
    except (CannotStart, subprocess.CalledProcessError, *FAILURES) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=2), encoding="utf-8")
    print(json.dumps(report))
    return 0


def compare(options: argparse.Namespace, names: Sequence[str]) -> JSON:
    """Start, measure in turns, print the table; the report. Raises what servers raise."""
    console = Console(width=None if Console().is_terminal else 130)
    base = options.model or made_base(options.shape)
    loads, seed = chosen_loads(options), chosen_seed(options)
    with tempfile.TemporaryDirectory() as home, ExitStack() as stack:
        servers: list[Running] = []
        targets: dict[str, Target] = {}
        for name in names:
            spec = spec_of(name, base.absolute(), options.threads, Path(home))
            servers.append(stack.enter_context(running(spec)))
        for text in options.url:
            name, _, url = text.partition("=")
            servers.append(Running(name, url))
        for server in servers:
            server.pause()
        for server in servers:
            targets[server.name] = _prepared(server, seed, loads)
        samples = _in_turns(servers, targets, loads, options.rounds)
        memory = {server.name: server.peak_mib() for server in servers}
    rows = [_row(load, samples[load.key]) for load in loads]
    console.print(table(f"{base.name}, {options.rounds} rounds", rows, memory))
    notes = [
        f"{name}: {note}"
        for load, row in zip(loads, rows, strict=True)
        for name, one in row["servers"].items()
        for note in remarks(load, one)
    ]
    for note in notes:
        console.print(f"note: {note}", highlight=False)
    return {
        "commit": commit(),
        "base": base.name,
        "threads": options.threads,
        "rounds": options.rounds,
        "seed": seed,
        "machine": {"cpus": os.cpu_count(), "processor": processor()},
        "versions": {server.name: versions(server.name) for server in servers},
        "peak_mib": memory,
        "rows": rows,
        "notes": notes,
    }


def made_base(shape: str) -> Path:
    """The folder of a random base, made by our command line if it is not there."""
    command = [sys.executable, "loraloop.py", "bench", "base", "--shape", shape]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return Path(done.stdout.splitlines()[-1])


def paired_ratio(load: Load, ours: Sequence[Sample], theirs: Sequence[Sample]) -> float:
    """How many times better the first is, in the median round: above 1 for less time, more rate."""
    pairs = zip(ours, theirs, strict=True)
    if load.is_first_token:
        return statistics.median(b.value / a.value for a, b in pairs)
    return statistics.median(a.value / b.value for a, b in pairs)


def table(title: str, rows: Sequence[JSON], memory: Mapping[str, float | None]) -> Table:
    """A row per figure, a column per server, with the first one's ratio to each other."""
    names = list(rows[0]["servers"])
    made = Table(title=title)
    made.add_column("figure")
    for name in names:
        made.add_column(name, justify="right")
    for name in names[1:]:
        made.add_column(f"{names[0]} / {name}", justify="right")
    for row in rows:
        values = [f"{row['servers'][name]['value']:.1f} {row['unit']}" for name in names]
        made.add_row(row["figure"], *values, *[f"{row['ratios'][n]:.2f} x" for n in names[1:]])
    peaks = [memory[name] for name in names]
    made.add_row("peak memory", *["" if p is None else f"{p:.0f} MiB" for p in peaks])
    return made


def _prepared(server: Running, seed: int, loads: Sequence[Load]) -> Target:
    """Calibrated and warm, the others paused."""
    server.resume()
    try:
        target = open_target(server.name, server.url, model=server.model, api_key="", seed=seed)
        target.run(Load("warm-up", "warm-up", 2, loads[0].num_prompt, 4))
        return target
    finally:
        server.pause()


def _in_turns(
    servers: Sequence[Running], targets: Mapping[str, Target], loads: Sequence[Load], rounds: int
) -> Samples:
    samples: Samples = {load.key: {s.name: [] for s in servers} for load in loads}
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=rounds * len(loads) * len(servers))
        for turn in range(rounds):
            for load in loads:
                first = turn % len(servers)
                for server in (*servers[first:], *servers[:first]):
                    progress.update(
                        task, description=f"round {turn + 1}, {load.key}, {server.name}"
                    )
                    server.resume()
                    samples[load.key][server.name].append(targets[server.name].run(load))
                    server.pause()
                    progress.advance(task)
    return samples


def _row(load: Load, by_server: Mapping[str, Sequence[Sample]]) -> JSON:
    names = list(by_server)
    return {
        "key": load.key,
        "figure": load.title,
        "unit": load.unit,
        "servers": {name: summary(load, by_server[name]) for name in names},
        "ratios": {n: paired_ratio(load, by_server[names[0]], by_server[n]) for n in names[1:]},
    }


if __name__ == "__main__":
    end_on_sigterm()
    sys.exit(main())
