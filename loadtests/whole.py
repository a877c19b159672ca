"""The engine's table, one run: ``python -m loadtests.whole`` (`make bench`).

In process by ``loraloop bench engine``, then over HTTP against a started server on the same base,
then the embedded base both ways in turns, which is the price of the server. Prints one table of
figures beside their floors and aims; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from loadtests.bench import FAILURES, chosen_seed, measure, positive, remarks
from loadtests.contenders import commit, ours_command, processor
from loadtests.measure import Load, Target, loads, open_target
from loadtests.peers import made_base
from loadtests.servers import ROOT, CannotStart, Running, Spec, end_on_sigterm, running

JSON = dict[str, Any]
OVERHEAD_LOAD = Load("streams_1", "1 stream", 1, 128, 128)
OVERHEAD_AIM = {"limit": 10.0, "is_upper": True}
OVERHEAD_REPEATS = 5  # each a third of a second
MOST_IS_BEST = ("tok/s", "%")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m loadtests.whole",
        description="All rows of the engine's table: in process, over HTTP, the server's price.",
    )
    made.add_argument("--shape", default="qwen2.5-0.5b", help="random base to measure")
    made.add_argument("--threads", type=positive, default=os.cpu_count(), help="of the engine")
    made.add_argument("--rounds", type=positive, default=3, help="the median is shown [3]")
    made.add_argument("--quick", action="store_true", help="to try it out, not to quote")
    made.add_argument("--seed", type=int, default=None, help="of the HTTP rows' prompts")
    made.add_argument("--json", type=Path, default=None, help="also write the JSON to this file")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    options = parser().parse_args(arguments)
    console = Console(width=None if Console().is_terminal else 130)
    try:
        report = whole(options)
    except (CannotStart, subprocess.CalledProcessError, *FAILURES) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    console.print(table(report))
    for line in (machine_line(report["engine"]), *[f"note: {n}" for n in report["notes"]]):
        console.print(line, highlight=False)
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=2), encoding="utf-8")
    print(json.dumps(report))
    return 0


def whole(options: argparse.Namespace) -> JSON:
    """Everything measured, as one report. Raises what subprocesses and servers raise."""
    base = made_base(options.shape)
    quick = ["--quick"] if options.quick else []
    shared = ["--threads", str(options.threads), "--repeats", str(options.rounds), *quick]
    engine = in_process(["--shape", options.shape, *shared])
    num_new = 16 if options.quick else 128
    rows = loads((1, 4, 8, 16), num_new=num_new)
    seed = chosen_seed(options)
    with tempfile.TemporaryDirectory() as home:
        env = {"LORALOOP_HOME": home, "LORALOOP_NUM_THREADS": str(options.threads)}
        with running(Spec("loraloop", ours_command(base), env=env)) as server:
            target = open_target("loraloop", server.url, model="", api_key="", seed=seed)
            results = measure(target, rows, options.rounds)
            peak = server.peak_mib()
        with running(Spec("embedded", ours_command(None), env={"LORALOOP_HOME": home})) as server:
            overhead = server_overhead(server, options.rounds, seed)
    over_http = [as_row(row, engine["rows"]) for row in results]
    notes = [n for load, row in zip(rows, results, strict=True) for n in remarks(load, row)]
    return {
        "commit": commit(),
        "seed": seed,
        "machine": {"cpus": os.cpu_count(), "processor": processor()},
        "engine": engine,
        "http_peak_mib": peak,
        "rows": [*over_http, *engine["rows"], overhead],
        "notes": notes,
    }


def in_process(arguments: Sequence[str]) -> JSON:
    """The JSON of one ``loraloop bench engine``; its progress shows on stderr."""
    command = [sys.executable, "loraloop.py", "bench", "engine", *arguments]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    report: JSON = json.loads(done.stdout.splitlines()[-1])
    return report


def as_row(measured: JSON, engine_rows: Sequence[JSON]) -> JSON:
    """An HTTP row beside floor and aim of the same row in process."""
    twin = next((row for row in engine_rows if row["key"] == measured["key"]), {})
    aim, floor, value = twin.get("aim"), twin.get("floor"), measured["value"]
    return measured | {
        "key": f"http_{measured['key']}",
        "figure": f"{measured['figure'].removesuffix(', whole requests')}, over HTTP",
        "floor": floor,
        "of_floor": None if floor is None else of_floor(value, floor, measured["unit"]),
        "aim": aim,
        "verdict": verdict(value, aim),
    }


def server_overhead(server: Running, rounds: int, seed: int) -> JSON:
    """How much faster one stream of the embedded base is in process, in per cent."""
    target = open_target("embedded", server.url, model="", api_key="", seed=seed)
    percents = []
    for _ in range(rounds):
        server.pause()
        arguments = ["--only", "streams", "--streams", "1", "--repeats", str(OVERHEAD_REPEATS)]
        alone = in_process(arguments)["rows"][0]["value"]
        server.resume()
        percents.append(100 * (alone / _median_rate(target) - 1))
    value = statistics.median(percents)
    return {
        "key": "overhead",
        "figure": "server overhead: embedded base, 1 stream",
        "unit": "% more",
        "value": value,
        "spread": [min(percents), max(percents)],
        "samples": percents,
        "floor": None,
        "of_floor": None,
        "aim": OVERHEAD_AIM,
        "verdict": verdict(value, OVERHEAD_AIM),
    }


def _median_rate(target: Target) -> float:
    target.run(OVERHEAD_LOAD)
    return statistics.median(target.run(OVERHEAD_LOAD).value for _ in range(OVERHEAD_REPEATS))


def of_floor(value: float, floor: float, unit: str) -> float:
    """How near the floor, 1 is on it."""
    return value / floor if unit in MOST_IS_BEST else floor / value


def verdict(value: float, aim: JSON | None) -> str | None:
    """``met`` or ``missed``, None without an aim."""
    if aim is None:
        return None
    is_met = value <= aim["limit"] if aim["is_upper"] else value >= aim["limit"]
    return "met" if is_met else "missed"


def table(report: JSON) -> Table:
    """One table of all rows."""
    engine = report["engine"]
    made = Table(title=f"{engine['base']}, {engine['dtype']}, commit {report['commit']}")
    for column in ("figure", "measured", "spread", "floor", "of floor", "aim", ""):
        made.add_column(column, justify="left" if column in ("figure", "") else "right")
    for row in report["rows"]:
        low, high = row["spread"]
        aim = row["aim"]
        made.add_row(
            row["figure"],
            f"{_short(row['value'])} {row['unit']}",
            "" if low == high else f"{_short(low)}-{_short(high)}",
            "" if row["floor"] is None else _short(row["floor"]),
            "" if row["of_floor"] is None else f"{100 * row['of_floor']:.0f} %",
            "" if aim is None else f"{'<=' if aim['is_upper'] else '>='} {aim['limit']:g}",
            row["verdict"] or "",
        )
    return made


def machine_line(engine: JSON) -> str:
    """The ceilings that the floors follow from."""
    best = engine["ceilings"]
    return (
        f"machine, {engine['threads']} threads: reads {best['read_bytes_s'] / 1e9:.1f} GB/s, "
        f"multiplies {best['matmul_flop_s'] / 1e12:.2f} TFLOP/s"
    )


def _short(value: float) -> str:
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:.{digits}f}"


if __name__ == "__main__":
    end_on_sigterm()
    sys.exit(main())
