"""What the forms of one adapter cost and lose, as a table, and what that says of a claim."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

BASELINE = "merged"  # in the base's own number format, computed by torch
FOUR_BIT = ("onnx-int4", "nf4", "gguf-q4_0")
# What tutorials promise of 4 bits.
CLAIM = "75 % smaller, 2.3x faster, at most 3 % loss"
CLAIMED_SMALLER, CLAIMED_FASTER, CLAIMED_LOSS = 0.75, 2.3, 3.0


@dataclass(frozen=True, slots=True)
class Row:
    """Medians over the rounds. None: not computed by this stack, or not verified."""

    format: str
    size_bytes: int  # of the weights
    load_s: float | None = None
    ttft_p90_s: float | None = None
    tokens_per_s: float | None = None  # one sequence
    tokens_per_s_8: float | None = None  # of eight sequences together
    peak_bytes: float | None = None  # above the process before loading
    perplexity_percent: float | None = None  # against base + adapter in float32


def markdown(rows: Sequence[Row]) -> str:
    """The table; ratios are to the baseline's row."""
    baseline = next((row for row in rows if row.format == BASELINE), None)
    lines = [
        "| format | size MB | load s | TTFT P90 ms | tokens/s, 1 | tokens/s, 8 | peak MB | "
        "perplexity |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        smaller = "" if baseline is None else f" ({_smaller(row, baseline):+.0%})"
        faster = _faster(row, baseline)
        cells = [
            row.format,
            f"{row.size_bytes / 1e6:,.1f}{smaller if row is not baseline else ''}",
            _cell(row.load_s, "{:.2f}"),
            _cell(row.ttft_p90_s, "{:.0f}", 1e3),
            _cell(row.tokens_per_s, "{:.1f}")
            + ("" if faster is None or row is baseline else f" ({faster:.2f}x)"),
            _cell(row.tokens_per_s_8, "{:.1f}"),
            _cell(row.peak_bytes, "{:,.0f}", 1e-6),
            _cell(row.perplexity_percent, "{:+.2f} %"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def verdicts(rows: Sequence[Row]) -> list[str]:
    """A sentence for each 4-bit form: which parts of the claim hold here."""
    baseline = next((row for row in rows if row.format == BASELINE), None)
    if baseline is None:
        return []
    found = []
    for row in rows:
        if row.format not in FOUR_BIT:
            continue
        smaller, faster = -_smaller(row, baseline), _faster(row, baseline)
        loss = row.perplexity_percent
        parts = [
            _part(f"{smaller:.0%} smaller", smaller >= CLAIMED_SMALLER),
            "speed is other programs' affair"
            if faster is None
            else _part(f"{faster:.2f}x as fast", faster >= CLAIMED_FASTER),
            "loss not measured"
            if loss is None
            else _part(f"perplexity {loss:+.2f} %", loss <= CLAIMED_LOSS),
        ]
        found.append(f'"{CLAIM}": {row.format}: {", ".join(parts)}')
    return found


def _part(text: str, holds: bool) -> str:
    return f"{text} ({'holds' if holds else 'does not hold'})"


def _smaller(row: Row, baseline: Row) -> float:
    return row.size_bytes / baseline.size_bytes - 1


def _faster(row: Row, baseline: Row | None) -> float | None:
    if baseline is None or row.tokens_per_s is None or baseline.tokens_per_s is None:
        return None
    return row.tokens_per_s / baseline.tokens_per_s


def _cell(value: float | None, form: str, scale: float = 1.0) -> str:
    return "" if value is None else form.format(value * scale)
