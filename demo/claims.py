"""What the demo asserts, each with its evidence. Pure: figures in, verdicts out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from demo.jobs import Trained
from loadtests.split import shares

JSON = Mapping[str, Any]


@dataclass(frozen=True)
class Claim:
    """One sentence, whether it holds, and why we think so."""

    text: str
    holds: bool
    evidence: str


def learned(version: Trained) -> Claim:
    return Claim(
        f"{version.id} predicts held-out text better than the base",
        version.adapter_loss < version.base_loss,
        f"perplexity {version.base_perplexity:.2f} → {version.adapter_perplexity:.2f} "
        f"({version.adapter_perplexity / version.base_perplexity - 1:+.0%})",
    )


def differs(base_text: str, adapter_text: str) -> Claim:
    return Claim(
        "base and adapter answer the same question differently",
        base_text != adapter_text and adapter_text.strip() != "",
        f"{len(base_text)} and {len(adapter_text)} characters",
    )


def nothing_failed(load: JSON) -> Claim:
    total = load["total"]
    return Claim(
        "no request failed while a version was trained and hot-loaded",
        total["errors"] == 0 and total["requests"] > 0,
        f"{total['errors']} of {total['requests']} failed",
    )


def split_holds(load: JSON, weights: Mapping[str, float]) -> Claim:
    """Every answer counts, so answers by a version outside the experiment break the split."""
    counts = {version: row["requests"] for version, row in load["versions"].items()}
    found = shares(weights, counts)
    return Claim(
        "traffic followed the weights within four standard deviations",
        all(share.is_within for share in found) and set(counts) <= set(weights),
        "; ".join(map(str, found)),
    )


def loaded_under_load(load: JSON, version: Trained) -> Claim:
    """Answers ended before and after the hot load, so it happened between them."""
    first_s, last_s = load["first_s"] or 0.0, load["last_s"] or 0.0
    return Claim(
        f"{version.id} was hot-loaded while requests were being answered",
        first_s < version.finished_at < last_s,
        f"{version.finished_at - first_s:.0f} s after the first answer, "
        f"{last_s - version.finished_at:.0f} s before the last",
    )


def answered_by(before: str, after: str, expected_before: str, expected_after: str) -> Claim:
    return Claim(
        "moving the alias changed the version that answers",
        (before, after) == (expected_before, expected_after),
        f"{before} → {after}",
    )
