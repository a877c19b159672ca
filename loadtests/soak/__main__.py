"""``python -m loadtests.soak`` (`make soak`): options in, a table out.

The exit code is 1 if any check fails, 2 if the server does not start.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from loadtests.client import get_json, parse_url
from loadtests.contenders import commit
from loadtests.servers import ROOT, CannotStart, end_on_sigterm
from loadtests.soak.client import Client
from loadtests.soak.meaning import Sayings
from loadtests.soak.operators import Operators
from loadtests.soak.run import MIB, Plan, Soak
from loadtests.soak.server import EMBEDDED, EXACT_KERNELS, soaked
from loadtests.soak.world import World

JSON = dict[str, Any]
MAX_LINES = 12  # of progress and of the memory series, whatever the duration
NUM_LOST_SHOWN = 5


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m loadtests.soak",
        description="Everything at once against a server of its own; no request may be lost.",
    )
    made.add_argument("--minutes", type=float, default=20.0, help="of driving [20]")
    made.add_argument("--model", type=Path, default=None, help="base folder [the embedded base]")
    made.add_argument("--seed", type=int, default=0, help="of what is sent; timing is not seeded")
    made.add_argument("--json", type=Path, default=ROOT / "reports" / "soak.json", help="record")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    options = parser().parse_args(arguments)
    console = Console(width=None if Console().is_terminal else 130)
    seconds = 60 * options.minutes
    try:
        report = run(options.model, Plan(seconds, min(60.0, seconds / 6)), options.seed, say)
    except CannotStart as error:
        print(f"CannotStart: {error}", file=sys.stderr)
        return 2
    show(report, console)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report, indent=1, ensure_ascii=False), encoding="utf-8")
    print(f"everything, lost requests included: {options.json}")
    return 1 if failed(report) else 0


def say(line: str) -> None:
    """At once, also into a file."""
    print(line, flush=True)


def run(model: Path | None, plan: Plan, seed: int, say: Callable[[str], None]) -> JSON:
    """Start a server, soak it, stop it. Raises CannotStart."""
    with (
        tempfile.TemporaryDirectory(prefix="soak-") as folder,
        soaked(model, Path(folder)) as server,
    ):
        url = server.running.url
        stats = get_json(parse_url(f"{url}/admin"), "/stats")
        kernels = stats["engine"]["kernels"]
        base_id = get_json(parse_url(url), "/models")["data"][0]["id"]
        config = json.loads(((model or EMBEDDED) / "config.json").read_text(encoding="utf-8"))
        world = World(base_id, Sayings(kernels == EXACT_KERNELS), random.Random(seed))
        say(f"{base_id} on {kernels} kernels, commit {commit()}, seed {seed}, pid {server.pid}")

        async def soak() -> JSON:
            async with Client(url, world) as client:
                made, remove = server.folder / "made", server.remove_version
                operators = Operators(client, config, made, remove)
                return await Soak(plan, server, world, client, operators, say).run()

        report = asyncio.run(soak())
        return {"commit": commit(), "seed": seed, "base": base_id, "kernels": kernels, **report}


def failed(report: JSON) -> list[JSON]:
    """The checks that do not hold."""
    return [check for check in report["checks"] if not check["holds"]]


def show(report: JSON, console: Console) -> None:
    """What was done, memory over time, the checks, and the first lost requests."""
    counts = Table("what", "how it ended", "times")
    for key, times in report["kinds"].items():
        counts.add_row(*key.split(), f"{times:,}")
    console.print(counts)
    console.print(f"refusals by status: {report['refusals']}", highlight=False)
    console.print(f"memory, MiB by minute: {series(report)}", highlight=False)
    table = Table("check", "", "evidence")
    for check in report["checks"]:
        table.add_row(check["name"], "ok" if check["holds"] else "FAILED", check["evidence"])
    console.print(table)
    for lost in report["lost"][:NUM_LOST_SHOWN]:
        console.print(f"LOST at {lost['at_s']:.1f} s ({lost['kind']}): {lost['why']}", markup=False)


def series(report: JSON) -> str:
    """Median resident memory of each minute (of each tenth of a shorter run)."""
    samples = report["samples"]
    step_s = min(60.0, report["seconds"] / MAX_LINES)
    parts: dict[int, list[int]] = {}
    for sample in samples:
        parts.setdefault(int(sample["at_s"] / step_s), []).append(sample["rss_bytes"])
    return " ".join(f"{statistics.median(part) / MIB:.0f}" for part in parts.values())


if __name__ == "__main__":
    end_on_sigterm()
    sys.exit(main())
