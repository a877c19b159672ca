"""First-token time and throughput of one server: ``python -m loadtests.bench --url URL``.

Works against any OpenAI-compatible server. Token counts are the server's own (``usage``), prompts
are measured by it beforehand and never repeat. Prints a table; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from loadtests.client import BadAnswer
from loadtests.measure import Load, Sample, Target, loads, open_target
from loadtests.prompts import Uncountable
from loadtests.sse import BrokenStream

JSON = dict[str, Any]
FAILURES = (BadAnswer, BrokenStream, Uncountable, OSError, ValueError)
LENGTH_TOLERANCE = 0.02  # of the prompt length asked for


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m loadtests.bench",
        description="Measure an OpenAI-compatible server: TTFT of a long prompt alone, then whole "
        "requests at 1, 4, 8 and 16 streams. The last line printed is JSON.",
    )
    made.add_argument("--url", required=True, help="http://127.0.0.1:8000, with or without /v1")
    made.add_argument("--model", default="", help="model id; default: the first of /v1/models")
    made.add_argument("--rounds", type=positive, default=3, help="the median is shown [3]")
    add_load_options(made)
    made.add_argument("--api-key", default=os.environ.get("OPENAI_API_KEY", ""))
    return made


def add_load_options(made: argparse.ArgumentParser) -> None:
    """Options that `loadtests.peers` shares."""
    made.add_argument(
        "--streams", type=numbers, default=(1, 4, 8, 16), help="requests at once [1,4,8,16]"
    )
    made.add_argument("--prompt-tokens", type=positive, default=128, help="of whole requests")
    made.add_argument("--new-tokens", type=positive, default=128, help="of whole requests")
    made.add_argument("--long-prompt", type=positive, default=512, help="of the TTFT row")
    made.add_argument(
        "--seed", type=int, default=None, help="of the prompts; new ones each run if left out"
    )


def chosen_loads(options: argparse.Namespace) -> tuple[Load, ...]:
    """The rows that the command line asks for."""
    return loads(options.streams, options.prompt_tokens, options.new_tokens, options.long_prompt)


def chosen_seed(options: argparse.Namespace) -> int:
    """A seed that no earlier run had, so that a server's prefix cache knows none of the prompts."""
    return int.from_bytes(os.urandom(4)) if options.seed is None else int(options.seed)


def summary(load: Load, samples: Sequence[Sample]) -> JSON:
    """One row as JSON: median, spread, and what the server counted."""
    values = [s.value for s in samples]
    prompts = [n for s in samples for n in s.prompt_tokens]
    new = [n for s in samples for n in s.new_tokens]
    return {
        "key": load.key,
        "figure": load.title,
        "unit": load.unit,
        "value": statistics.median(values),
        "spread": [min(values), max(values)],
        "samples": values,
        "streams": load.num_streams,
        "prompt_tokens": [min(prompts), max(prompts)],
        "new_tokens": [min(new), max(new)],
        "ttft_p50_ms": statistics.median(t for s in samples for t in s.ttft_ms),
        "is_counted_by_server": all(s.is_counted for s in samples),
    }


def remarks(load: Load, row: JSON) -> list[str]:
    """What makes a row less than what its title says."""
    found = []
    low, high = row["prompt_tokens"]
    furthest = max(load.num_prompt - low, high - load.num_prompt)
    if low and furthest > LENGTH_TOLERANCE * load.num_prompt:
        found.append(f"{load.title}: prompts had {low} to {high} tokens, not {load.num_prompt}")
    low, high = row["new_tokens"]
    if not load.is_first_token and (low, high) != (load.num_new, load.num_new):
        found.append(f"{load.title}: answers had {low} to {high} tokens, not {load.num_new}")
    if not row["is_counted_by_server"]:
        found.append(f"{load.title}: tokens counted by events, the server sent no usage")
    return found


def measure(target: Target, rows: Sequence[Load], rounds: int) -> list[JSON]:
    """All rows, ``rounds`` times in turn, after one warm-up."""
    samples: dict[str, list[Sample]] = {load.key: [] for load in rows}
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("warm-up", total=len(rows) * rounds)
        target.run(Load("warm-up", "warm-up", 2, rows[0].num_prompt, 4))
        for turn in range(rounds):
            for load in rows:
                progress.update(task, description=f"round {turn + 1}: {load.title}")
                samples[load.key].append(target.run(load))
                progress.advance(task)
    return [summary(load, samples[load.key]) for load in rows]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    options = parser().parse_args(arguments)
    console = Console(width=None if Console().is_terminal else 110)
    rows, seed = chosen_loads(options), chosen_seed(options)
    try:
        target = open_target(
            "server", options.url, model=options.model, api_key=options.api_key, seed=seed
        )
        results = measure(target, rows, options.rounds)
    except FAILURES as error:
        print(f"{options.url}: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    console.print(table(target.endpoint.model, results))
    notes = [note for load, row in zip(rows, results, strict=True) for note in remarks(load, row)]
    for note in notes:
        console.print(f"note: {note}", highlight=False)
    report = {
        "url": options.url,
        "model": target.endpoint.model,
        "seed": seed,
        "accepted": sorted(target.extras),
        "rows": results,
        "notes": notes,
    }
    print(json.dumps(report))
    return 0


def table(title: str, results: Sequence[JSON]) -> Table:
    """The rows for people."""
    made = Table(title=title)
    for column in ("figure", "median", "spread", "TTFT P50 ms"):
        made.add_column(column, justify="left" if column == "figure" else "right")
    for row in results:
        low, high = row["spread"]
        made.add_row(
            row["figure"],
            f"{row['value']:.1f} {row['unit']}",
            f"{low:.1f}-{high:.1f}",
            f"{row['ttft_p50_ms']:.0f}",
        )
    return made


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return int(text)


def numbers(text: str) -> tuple[int, ...]:
    return tuple(positive(part) for part in text.split(","))


if __name__ == "__main__":
    sys.exit(main())
