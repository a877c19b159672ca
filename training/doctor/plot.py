"""The lengths of rows as a PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def plot_lengths(lengths: Sequence[int], max_length: int, path: Path) -> None:
    """Rows by tokens, with the line behind which they are cut. Raises OSError."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.hist(list(lengths), bins=min(60, max(1, len(set(lengths)))), color="tab:blue")
    axes.axvline(max_length, color="tab:red", linestyle="--", label=f"max_length {max_length}")
    axes.set(xlabel="tokens of a row", ylabel="rows", title=f"{len(lengths)} rows")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120, format="png")
