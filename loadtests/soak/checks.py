"""What must hold when the soak is over. Pure: figures in, verdicts out."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loadtests.soak.asks import GIVEN_UP
from loadtests.soak.book import Book, Outcome
from loadtests.soak.server import MAX_HOST_ADAPTERS, Sample

JSON = dict[str, Any]
MAX_GROWTH = 0.05  # of resident memory after warm-up
# oneDNN keeps what it compiles for each new shape, up to a bound that it reaches within minutes.
SHORT_S, MAX_SHORT_GROWTH_ON_TORCH = 600.0, 0.5
PART = 5  # the first and the last fifth after warm-up are compared
# What comes with the first crowd and stays: the database's pool keeps up to five connections of two
# descriptors each; worker threads come when they are needed and end when they please.
SPARE_FDS, SPARE_THREADS = 8, 6
OURS = "loopback"  # what the audit log calls a caller without a key
RUNNING_ADAPTERS = re.compile(r'^vllm:lora_requests_info\{.*running_lora_adapters="([^"]*)"', re.M)


COUNTS = ("requests", "errors", "aborted", "dropped", "timed_out", "rejected")
DONE = (
    *("chat", "completion", "experiment", "slow", "burst", "again", "last", "feedback", "look"),
    *("import", "remove", "flip", "load", "unload", "weigh", "train"),
)
WANTED = (
    *((kind, Outcome.ANSWERED) for kind in DONE),
    *((kind, Outcome.REFUSED) for kind in ("burst", "wrong", "removed", "stall", "hurry")),
    ("leave", Outcome.LEFT),
)


@dataclass(frozen=True)
class Check:
    """One claim, whether it holds, and why we think so."""

    name: str
    holds: bool
    evidence: str


def nothing_lost(book: Book) -> list[Check]:
    """Every request ended, once, in a legal way."""
    shown = ", ".join(f"{book.outcomes[outcome]} {outcome}" for outcome in Outcome)
    return [
        Check("no request is lost", not book.outcomes[Outcome.LOST], shown),
        Check("every request has ended", not book.num_open, f"{book.num_open} open"),
    ]


def everything_happened(book: Book) -> Check:
    """A soak in which something never happened proves nothing about it."""
    missing = [f"{kind} {outcome}" for kind, outcome in WANTED if not book.kinds[kind, outcome]]
    return Check("everything happened", not missing, f"missing: {missing}" if missing else "yes")


def idle(stats: JSON, metrics: str, adapters: Sequence[JSON]) -> list[Check]:
    """Nothing runs, nothing is held."""
    engine = stats["engine"]
    busy = {key: engine[key] for key in ("running", "waiting")}
    free, total = engine["kv_blocks_free"], engine["kv_blocks_total"]
    running = RUNNING_ADAPTERS.search(metrics)
    pinned = [a["id"] for a in adapters if a["state"]["running_requests"]]
    if running is None or running[1]:
        pinned.append("no metric" if running is None else running[1])
    known = engine["known_adapters"]
    return [
        Check("nothing runs or waits", not any(busy.values()), str(busy)),
        Check("all KV blocks are free", free == total, f"{free} of {total}"),
        Check("no adapter is pinned", not pinned, str(pinned)),
        Check(
            "adapters in memory are bounded",
            known <= MAX_HOST_ADAPTERS,
            f"{known}, at most {MAX_HOST_ADAPTERS}",
        ),
    ]


def was_tight(stats: JSON) -> Check:
    """KV cache and bank ran full: answers were preempted, and suspended for others' adapters."""
    counts = {key: stats["engine"][key] for key in ("preemptions", "suspensions")}
    return Check("memory was tight", all(counts.values()), str(counts))


def process_is_as_before(before: Sample, after: Sample) -> list[Check]:
    """Descriptors and threads at the end against those at rest after warm-up."""
    return [
        Check(
            "file descriptors are back",
            after.num_fds <= before.num_fds + SPARE_FDS,
            f"{before.num_fds} after warm-up, {after.num_fds} at the end",
        ),
        Check(
            "threads are back",
            after.num_threads <= before.num_threads + SPARE_THREADS,
            f"{before.num_threads} after warm-up, {after.num_threads} at the end",
        ),
    ]


def allowed_growth(duration_s: float, is_exact: bool) -> float:
    """Of a run of this length; ``is_exact``: on our own kernels, which keep nothing."""
    return MAX_GROWTH if is_exact or duration_s >= SHORT_S else MAX_SHORT_GROWTH_ON_TORCH


def memory_is_flat(samples: Sequence[Sample], max_growth: float = MAX_GROWTH) -> Check:
    """Median resident memory of the last fifth against the first, of samples under load."""
    part = max(1, len(samples) // PART)
    first, last = (
        statistics.median(sample.rss_bytes for sample in some)
        for some in (samples[:part], samples[-part:])
    )
    growth = last / first - 1
    return Check(
        f"memory grows by less than {max_growth:.0%}",
        growth < max_growth,
        f"{first / 2**20:.1f} to {last / 2**20:.1f} MiB, {growth:+.1%}",
    )


def registry_is_whole(
    code: int, printed: str, adapters: JSON, versions: set[str], aliases: Mapping[str, int]
) -> list[Check]:
    """The files are as recorded, and what exists is what should exist."""
    found = {adapter["id"] for adapter in adapters["data"]}
    pointing = {
        f"{name}@{alias}": number
        for name, own in adapters["aliases"].items()
        for alias, number in own.items()
    }
    return [
        Check("`loraloop adapters verify`", code == 0, printed.strip()[-200:] if code else "whole"),
        Check(
            "the registry holds what was made",
            found == versions,
            f"{len(found)} versions" if found == versions else f"{sorted(found ^ versions)} differ",
        ),
        Check(
            "aliases point where they were put",
            pointing == dict(aliases),
            f"{len(pointing)} aliases"
            if pointing == dict(aliases)
            else f"{sorted(set(pointing.items()) ^ set(aliases.items()))} differ",
        ),
    ]


def audit_is_complete(book: Book, entries: Iterable[JSON]) -> Check:
    """Every change that was acknowledged is in the trail, and no other of ours."""
    found = Counter((e["action"], e["subject"]) for e in entries if e["who"] == OURS)
    missing, unknown = book.actions - found, found - book.actions
    problems = [f"missing {dict(missing)}"] if missing else []
    problems += [f"unknown {dict(unknown)}"] if unknown else []
    evidence = "; ".join(problems)[:500] or f"{found.total()} entries"
    return Check("the audit log has what was done", not problems, evidence)


def counters_agree(book: Book, stats: JSON) -> list[Check]:
    """The server's counts of completions against ours; those that we left may count either way."""
    unsure = sum(book.unsure.values())
    rows = stats["adapters"]
    total = {key: sum(row[key] for row in rows.values()) for key in COUNTS}
    given_up = total["dropped"] + total["timed_out"]
    answered = sum(book.answered.values())
    checks = [
        _between("requests answered", _whole(total), answered, answered + unsure),
        _between("requests aborted", total["aborted"], 0, unsure),
        _between("requests rejected", total["rejected"], book.overloads, book.overloads + unsure),
        _between("requests given up", given_up, 0, book.statuses[GIVEN_UP] + unsure),
        _between("requests in error", total["errors"], 0, 0),
    ]
    for title, ours, theirs in (
        ("version", book.answered, rows),
        ("arm", book.arms, stats["arms"]),
    ):
        wrong = _disagreeing(ours, theirs, unsure)
        evidence = str(wrong)[:500] if wrong else f"{len(ours)} of them"
        checks.append(Check(f"answers per {title} agree", not wrong, evidence))
    return checks


def _whole(row: Mapping[str, int]) -> int:
    """Requests that were answered to their end."""
    unfinished = ("aborted", "errors", "dropped", "timed_out")
    return row["requests"] - sum(row[key] for key in unfinished)


def _between(name: str, found: int, least: int, most: int) -> Check:
    span = str(least) if least == most else f"{least} to {most}"
    return Check(f"{name} agree", least <= found <= most, f"server {found}, here {span}")


def _disagreeing(ours: Mapping[str, int], rows: Mapping[str, JSON], unsure: int) -> JSON:
    """Keys with counts of (ours, server's) that cannot both be right."""
    wrong = {}
    for key in ours.keys() | rows.keys():
        whole = _whole(rows.get(key, dict.fromkeys(COUNTS, 0)))
        if not ours.get(key, 0) <= whole <= ours.get(key, 0) + unsure:
            wrong[key] = (ours.get(key, 0), whole)
    return wrong


def log_is_quiet(complaints: Sequence[str]) -> Check:
    """Nothing that an operator would be called for."""
    evidence = f"{len(complaints)} lines" + (f", first: {complaints[0]}" if complaints else "")
    return Check("the server's log has no error", not complaints, evidence)


def stopped(code: int | None, seconds: float, grace_s: float) -> Check:
    """SIGTERM ends it within its grace time, as a success."""
    evidence = f"exit code {code} after {seconds:.1f} s"
    return Check("SIGTERM ends it in time", code == 0 and seconds <= grace_s, evidence)
