"""One polite key's first tokens alone and beside a greedy key's many streams.

Measures a server that runs already (``--url``) and knows both keys. Every round has the polite
traffic without and with the greedy one, in an order that alternates; what counts is the ratio
within a round. The greedy client is a process of its own, so that the polite one never waits for
it. Prints a table; the last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.table import Table

from loadtests.bench import FAILURES, chosen_seed, positive
from loadtests.measure import open_target
from loadtests.steady import Traffic, hear

JSON = dict[str, Any]
RAMP_S = 3.0  # until all greedy streams are under way


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m loadtests.tenants",
        description="TTFT of one key alone against beside another key's many streams.",
    )
    made.add_argument("--url", required=True, help="http://127.0.0.1:8000, with or without /v1")
    made.add_argument("--polite-key", required=True, help="one of LORALOOP_API_KEYS")
    made.add_argument("--greedy-key", required=True, help="another; the same one: no fair share")
    made.add_argument("--streams", type=positive, default=4, help="of the polite key [4]")
    made.add_argument("--prompt-tokens", type=positive, default=256, help="its prompts [256]")
    made.add_argument("--new-tokens", type=positive, default=32, help="its answers [32]")
    made.add_argument("--greedy-streams", type=positive, default=50, help="[50]")
    made.add_argument("--greedy-prompt-tokens", type=positive, default=256, help="[256]")
    made.add_argument("--greedy-new-tokens", type=positive, default=128, help="[128]")
    made.add_argument("--seconds", type=float, default=20.0, help="of each span [20]")
    made.add_argument("--rounds", type=positive, default=3, help="the median is shown [3]")
    made.add_argument("--seed", type=int, default=None, help="of the prompts")
    made.add_argument("--model", default="", help="model id; default: the first of /v1/models")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    options = parser().parse_args(arguments)
    try:
        report = compare(options)
    except FAILURES as error:
        print(f"{options.url}: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    Console(width=None if Console().is_terminal else 120).print(table(report))
    print(json.dumps(report, ensure_ascii=False))
    return 0


def compare(options: argparse.Namespace) -> JSON:
    """All rounds; the report. Raises what clients raise."""
    seed = chosen_seed(options)
    target = open_target(
        "polite", options.url, model=options.model, api_key=options.polite_key, seed=seed
    )
    traffic = Traffic(options.streams, None, options.prompt_tokens, options.new_tokens)
    greedy = Traffic(
        options.greedy_streams, None, options.greedy_prompt_tokens, options.greedy_new_tokens
    )
    spans: dict[str, list[JSON]] = {"alone": [], "beside": []}
    for turn in range(options.rounds):
        for name in ("alone", "beside") if turn % 2 == 0 else ("beside", "alone"):
            with _greedy(options, greedy, seed + turn) if name == "beside" else _nobody():
                found = hear(target, traffic, options.seconds, seed + turn).summary()
            print(f"{name:8s} {json.dumps(found)}", file=sys.stderr, flush=True)
            spans[name].append(found)
    pairs = list(zip(spans["beside"], spans["alone"], strict=True))
    ratios = [round(beside["ttft_p90_ms"] / alone["ttft_p90_ms"], 3) for beside, alone in pairs]
    return {
        "model": target.endpoint.model,
        "polite": traffic.title,
        "greedy": greedy.title,
        "seed": seed,
        "spans": spans,
        "ttft_p90_ratio": {"median": statistics.median(ratios), "rounds": ratios},
    }


@contextmanager
def _nobody() -> Iterator[None]:
    yield


@contextmanager
def _greedy(options: argparse.Namespace, traffic: Traffic, seed: int) -> Iterator[None]:
    """The greedy key's streams, in another process, while the block runs."""
    seconds = options.seconds + 2 * RAMP_S
    arguments = (options.url, options.model, options.greedy_key, traffic, seconds, seed + 1_000_000)
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    process = context.Process(target=_be_greedy, args=(started, *arguments))
    process.start()
    try:
        started.wait()
        time.sleep(RAMP_S)
        yield
    finally:
        process.join(timeout=seconds + 60)
        process.kill()
    if process.exitcode:
        raise OSError(f"the greedy client failed with exit code {process.exitcode}")


def _be_greedy(
    started: Any, url: str, model: str, key: str, traffic: Traffic, *rest: float
) -> None:
    seconds, seed = rest
    target = open_target("greedy", url, model=model, api_key=key, seed=int(seed))
    started.set()
    hear(target, traffic, seconds, int(seed))


def table(report: JSON) -> Table:
    """A row per kind of span, medians over the rounds."""
    made = Table(title=f"{report['model']}: {report['polite']}, greedy: {report['greedy']}")
    keys = ("requests", "ttft_p50_ms", "ttft_p90_ms", "tokens_per_s")
    made.add_column("polite key")
    for key in keys:
        made.add_column(key, justify="right")
    for name, spans in report["spans"].items():
        made.add_row(name, *[f"{statistics.median(s[key] for s in spans):.1f}" for key in keys])
    made.add_row("ratio of P90", "", "", f"{report['ttft_p90_ratio']['median']:.2f} x", "")
    return made


if __name__ == "__main__":
    sys.exit(main())
