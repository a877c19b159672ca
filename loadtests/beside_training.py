"""First tokens with a training job beside the chats, against without: ``make bench-beside``.

Measures a server that runs already (``--url``). Every round has the same traffic without and with
the job, in an order that alternates, and, with ``--alone``, the job without traffic. What counts is
the ratio within a round. Prints a table; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import requests
from rich.console import Console
from rich.table import Table

from loadtests.bench import FAILURES, chosen_seed, positive
from loadtests.measure import Target, open_target
from loadtests.steady import Heard, Traffic, hear
from loadtests.training_job import EndlessJob, JobFailed

JSON = dict[str, Any]
DATA = Path(__file__).resolve().parent.parent / "examples" / "lantern-tea.jsonl"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m loadtests.beside_training",
        description="TTFT with a training job beside the chats against without. Needs the right "
        "to train on the server. The last line printed is JSON.",
    )
    made.add_argument("--url", required=True, help="http://127.0.0.1:8000, with or without /v1")
    made.add_argument("--data", type=Path, default=DATA, help="examples to train on")
    made.add_argument(
        "--set", action="append", default=[], metavar="KEY=JSON", help="of the job, batch_size=1"
    )
    made.add_argument("--streams", type=positive, default=2, help="in a closed loop [2]")
    made.add_argument("--rate", type=float, default=None, help="requests/s, instead of --streams")
    made.add_argument("--prompt-tokens", type=positive, default=128)
    made.add_argument("--new-tokens", type=positive, default=64)
    made.add_argument("--seconds", type=float, default=20.0, help="of each span [20]")
    made.add_argument("--settle", type=float, default=2.0, help="of traffic before each span [2]")
    made.add_argument("--rounds", type=positive, default=3, help="the median is shown [3]")
    made.add_argument("--alone", action="store_true", help="also clock the job without traffic")
    made.add_argument("--seed", type=int, default=None, help="of prompts and arrivals")
    made.add_argument("--model", default="", help="model id; default: the first of /v1/models")
    made.add_argument("--api-key", default=os.environ.get("OPENAI_API_KEY", ""))
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    options = parser().parse_args(arguments)
    try:
        report = compare(options)
    except (JobFailed, requests.RequestException, *FAILURES) as error:
        print(f"{options.url}: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    Console(width=None if Console().is_terminal else 120).print(table(report))
    print(json.dumps(report, ensure_ascii=False))
    return 0


def compare(options: argparse.Namespace) -> JSON:
    """All rounds; the report. Raises JobFailed and what clients raise."""
    seed = chosen_seed(options)
    settings = {key: json.loads(value) for key, _, value in (s.partition("=") for s in options.set)}
    target = open_target(
        "server", options.url, model=options.model, api_key=options.api_key, seed=seed
    )
    job = EndlessJob(options.url, target.endpoint.model, options.data, settings, options.api_key)
    traffic = Traffic(options.streams, options.rate, options.prompt_tokens, options.new_tokens)
    spans: dict[str, list[JSON]] = {"without": [], "with": [], "alone": []}
    names = ["without", "with", *(["alone"] if options.alone else [])]
    try:
        for turn in range(options.rounds):
            for name in names if turn % 2 == 0 else names[::-1]:
                spans[name].append(_span(name, target, job, traffic, options, seed + turn))
    finally:
        job.cancel()
    return {
        "model": target.endpoint.model,
        "traffic": traffic.title,
        "seed": seed,
        "job": settings,
        "spans": {name: found for name, found in spans.items() if found},
        "ttft_p90_ratio": _ratio(spans, "ttft_p90_ms"),
        "ttft_p50_ratio": _ratio(spans, "ttft_p50_ms"),
        "server_ttft_p90_ratio": _ratio(spans, "server_ttft_p90_ms"),
        "tokens_per_s_ratio": _ratio(spans, "tokens_per_s"),
        "messages": job.messages(),
    }


def _span(
    name: str,
    target: Target,
    job: EndlessJob,
    traffic: Traffic,
    options: argparse.Namespace,
    seed: int,
) -> JSON:
    """One measurement: ``without`` and ``with`` have traffic, ``with`` and ``alone`` the job."""
    if name != "without":
        job.work()
    if name != "alone":
        hear(target, traffic, options.settle, seed)
    job.forget_statistics()
    first, began = (job.step() if name != "without" else 0), time.perf_counter()
    if name == "alone":
        time.sleep(options.seconds)
        found: JSON = {}
    else:
        found = _told(hear(target, traffic, options.seconds, seed), job)
    if name != "without":
        found["steps_per_s"] = round((job.step() - first) / (time.perf_counter() - began), 3)
        job.rest()
    print(f"{name:8s} {json.dumps(found)}", file=sys.stderr, flush=True)
    return found


def _told(heard: Heard, job: EndlessJob) -> JSON:
    """What clients and server say of one span."""
    stats = job.statistics()
    (own, *_) = stats["adapters"].values()
    return heard.summary() | {
        "server_ttft_p90_ms": own["ttft_ms"]["p90"],
        "training": stats.get("training"),
    }


def _ratio(spans: dict[str, list[JSON]], key: str) -> JSON:
    """With the job to without, in the median round."""
    pairs = zip(spans["with"], spans["without"], strict=True)
    each = [round(beside[key] / without[key], 3) for beside, without in pairs]
    return {"median": statistics.median(each), "rounds": each}


def table(report: JSON) -> Table:
    """A row per kind of span, medians over the rounds."""
    made = Table(title=f"{report['model']}, {report['traffic']}")
    keys = ("ttft_p50_ms", "ttft_p90_ms", "server_ttft_p90_ms", "tokens_per_s", "steps_per_s")
    made.add_column("job")
    for key in keys:
        made.add_column(key, justify="right")
    for name, spans in report["spans"].items():
        values = [[span[key] for span in spans if span.get(key) is not None] for key in keys]
        made.add_row(name, *[f"{statistics.median(v):.1f}" if v else "" for v in values])
    ratios = [report[f"{key}_ratio"]["median"] for key in ("ttft_p50", "ttft_p90")]
    made.add_row("with / without", *[f"{ratio:.2f} x" for ratio in ratios])
    return made


if __name__ == "__main__":
    sys.exit(main())
