"""A row that is longer than ``max_length`` as several examples that see the end of the one before.

What is seen again is masked: every target of the row is trained once, by one window.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from artifacts.errors import InvalidInput

IGNORED = -100  # transformers' label of a position without loss


def check_overlap(overlap: int, max_length: int) -> None:
    """The first token of a window is predicted by nobody, so one must be seen again."""
    if not 1 <= overlap < max_length:
        raise InvalidInput(
            f"window_overlap={overlap} must be at least 1 and below max_length={max_length}",
            param="window_overlap",
        )


def cut_windows(
    input_ids: Sequence[int], labels: Sequence[int], max_length: int, overlap: int
) -> list[tuple[Sequence[int], Sequence[int]]]:
    """Ids and labels of each window that has a target, in order; a short row is one window.

    Each begins with the last ``overlap`` tokens of the one before, without loss.
    """
    windows: list[tuple[Sequence[int], Sequence[int]]] = []
    start = 0
    while True:
        end = min(start + max_length, len(input_ids))
        seen = overlap if start else 0
        own = array("i", [IGNORED] * seen + list(labels[start + seen : end]))
        if any(label != IGNORED for label in own[1:]):
            windows.append((input_ids[start:end], own))
        if end == len(input_ids):
            return windows
        start = end - overlap
