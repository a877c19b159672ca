"""The demo's last page: a table per arm, memory, hot load, and the verdict on every claim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from demo.claims import Claim
from demo.jobs import Trained

JSON = Mapping[str, Any]
MIB = 1024 * 1024


def arms_table(load: JSON, weights: Mapping[str, float]) -> Table:
    """Per arm: the client's figures, and the server's own P90 as a check on them."""
    table = Table(title="A/B test under load (milliseconds, client's clock)")
    table.add_column("arm")
    columns = ("weight", "requests", "errors", "TTFT P50", "P90", "P99", "server's P90")
    for column in (*columns, "tokens/s a stream"):
        table.add_column(column, justify="right")
    by_server = (load.get("server") or {}).get("adapters", {})
    for arm, weight in weights.items():
        row = load["versions"].get(arm)
        if row is None:
            table.add_row(arm, f"{weight:.0f} %", "0", *["–"] * 6)
            continue
        percentiles = [number(row["ttft_ms"][q]) for q in ("p50", "p90", "p99")]
        own = number(((by_server.get(arm) or {}).get("ttft_ms") or {}).get("p90"))
        counts = (str(row["requests"]), str(row["errors"]))
        speed = number(row["tokens_per_s"])
        table.add_row(arm, f"{weight:.0f} %", *counts, *percentiles, own, speed)
    return table


def print_report(console: Console, load: JSON, weights: Mapping[str, float], hot: Trained) -> None:
    """The table and the figures below it."""
    console.print()
    console.print(arms_table(load, weights))
    memory = (load.get("server") or {}).get("memory")
    if memory:
        adapters = sum(memory["adapters"].values())
        console.print(
            f"Peak memory of the server: {memory['rss_peak_bytes'] / MIB:.0f} MiB "
            f"(KV cache {memory['kv_bytes'] / MIB:.0f} MiB, "
            f"{len(memory['adapters'])} adapters {adapters / MIB:.1f} MiB)"
        )
    console.print(f"Hot load of {hot.id} under load: {hot.load_s * 1000:.0f} ms")
    console.print(f"Failed requests: {load['total']['errors']}")


def print_verdict(console: Console, claims: Sequence[Claim]) -> bool:
    """Every claim with its evidence; whether all hold."""
    console.print()
    for claim in claims:
        mark = "[green]holds[/]" if claim.holds else "[bold red]FAILS[/]"
        console.print(f"  {mark}  {claim.text}", highlight=False)
        console.print(f"         {claim.evidence}", style="dim", highlight=False, markup=False)
    return all(claim.holds for claim in claims)


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}" if value < 100 else f"{value:.0f}"
