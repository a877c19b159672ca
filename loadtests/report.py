"""The end of a run: the server's own figures beside the clients', limits, the exit code.

Against a server without ``/admin/stats`` the server's columns are left out with a notice.
"""

from __future__ import annotations

import json
import signal
from argparse import Namespace
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import gevent
import requests
from locust import events
from locust.env import Environment
from locust.runners import WorkerRunner
from rich.console import Console
from rich.table import Table

from loadtests.options import bearer
from loadtests.tally import Tally

JSON = dict[str, Any]
MIB = 1024 * 1024


@dataclass
class Run:
    """What one process gathers of one test run."""

    tally: Tally = field(default_factory=Tally)
    problems: list[str] = field(default_factory=list)  # failed checks of the scenario


_runs: WeakKeyDictionary[Environment, Run] = WeakKeyDictionary()


def run_of(environment: Environment) -> Run:
    """The run of this Locust environment, of which each process has one."""
    return _runs.setdefault(environment, Run())


@events.test_start.add_listener
def forget(environment: Environment, **_: object) -> None:
    """A second start from the web UI counts from nothing."""
    _runs[environment] = Run()


@events.init.add_listener
def connect(environment: Environment, **_: object) -> None:
    """With --processes or --master, workers ship their tallies with Locust's own reports."""

    def attach(client_id: str, data: JSON) -> None:
        data["tally"] = run_of(environment).tally.drain()

    def collect(client_id: str, data: JSON) -> None:
        if "tally" in data:
            run_of(environment).tally.merge(data["tally"])

    environment.events.report_to_master.add_listener(attach)
    environment.events.worker_report.add_listener(collect)


@events.init.add_listener
def end_on_signal(environment: Environment, **_: object) -> None:
    """SIGUSR1 ends a run as --run-time does, for a caller that knows when it has seen enough."""
    runner = environment.runner
    if runner is not None and not isinstance(runner, WorkerRunner):
        gevent.signal_handler(signal.SIGUSR1, runner.quit)


@events.quitting.add_listener
def finish(environment: Environment, **_: object) -> None:
    """Print the table, write the summary, and turn broken limits into exit code 1."""
    if isinstance(environment.runner, WorkerRunner) or environment.parsed_options is None:
        return
    options, tally = environment.parsed_options, run_of(environment).tally
    stats = server_stats(environment.host, options)
    problems = run_of(environment).problems + broken_limits(tally, options)
    console = Console(width=None if Console().is_terminal else 110)
    console.print(table(tally, stats))
    console.print(memory_line(stats))
    for problem in problems:
        console.print(f"FAILED: {problem}", style="bold red", highlight=False)
    if options.summary:
        summary = tally.summary() | {"server": stats, "problems": problems}
        text = json.dumps(summary, indent=2, ensure_ascii=False)
        Path(options.summary).write_text(text, encoding="utf-8")
    if problems:
        environment.process_exit_code = 1


def server_stats(host: str | None, options: Namespace) -> JSON | None:
    """``GET /admin/stats``, None where the server has none or does not let us."""
    try:
        answer = requests.get(
            f"{host}/admin/stats", headers=bearer(options.admin_key or options.api_key), timeout=10
        )
        answer.raise_for_status()
        stats: JSON = answer.json()
    except (requests.RequestException, ValueError):
        return None
    return stats


def broken_limits(tally: Tally, options: Namespace) -> list[str]:
    """One sentence per limit that the run broke."""
    total = tally.everything().summary()
    problems = []
    if total["requests"] == 0:
        problems.append("no request was answered")
    if total["errors"] > options.max_errors:
        problems.append(f"{total['errors']} failed requests, {options.max_errors} allowed")
    for name, limit in (("ttft", options.max_ttft_p90_ms), ("itl", options.max_itl_p90_ms)):
        measured = total[f"{name}_ms"]["p90"]
        if limit and measured is not None and measured > limit:
            problems.append(f"{name.upper()} P90 is {measured:.0f} ms, {limit:.0f} ms allowed")
    return problems


def table(tally: Tally, stats: JSON | None) -> Table:
    """One row per version that answered; the last column is what the server measured itself."""
    result = Table(title="Answers by version (client's clock; milliseconds)")
    result.add_column("version")
    for column in ("requests", "errors", "TTFT P50", "P90", "P99", "ITL P50", "P90"):
        result.add_column(column, justify="right")
    result.add_column("tokens/s a stream", justify="right")
    result.add_column("server's TTFT P90", justify="right")
    server = own_rows(stats)
    for version, row in tally.summary()["versions"].items():
        ttft, itl = row["ttft_ms"], row["itl_ms"]
        result.add_row(
            version,
            str(row["requests"]),
            str(row["errors"]),
            *(number(ttft[q]) for q in ("p50", "p90", "p99")),
            *(number(itl[q]) for q in ("p50", "p90")),
            number(row["tokens_per_s"]),
            number(((server.get(version) or {}).get("ttft_ms") or {}).get("p90")),
        )
    return result


def own_rows(stats: JSON | None) -> JSON:
    """The server's own rows by version; those of an experiment's arms where there are some."""
    arms = (stats or {}).get("arms", {}).items()
    rows: JSON = (stats or {}).get("adapters", {})
    return rows | {key.split("/", 1)[-1]: row for key, row in arms}


def memory_line(stats: JSON | None) -> str:
    """Peak memory as the server reports it."""
    if stats is None:
        return "The server gave no /admin/stats: its own P90 and peak memory are left out."
    memory = stats["memory"]
    return (
        f"Server's peak memory: {memory['rss_peak_bytes'] / MIB:.0f} MiB resident, "
        f"KV cache {memory['kv_bytes'] / MIB:.0f} MiB, "
        f"adapters {sum(memory['adapters'].values()) / MIB:.1f} MiB."
    )


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}" if value < 100 else f"{value:.0f}"
