"""How a traffic split lies over the hash space. Pure arithmetic: knows no database, models or HTTP.

A subject hashes to one point of ``[0, SPACE)``; an arm owns segments of it in proportion to its
weight. Re-weighting cuts from the arms that shrink and hands exactly that to the arms that grow, so
the subjects that change arm are the total variation between both splits and no more. (Plain
cumulative boundaries move more than that as soon as there are three arms.)
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SPACE = 2**32


@dataclass(frozen=True, slots=True)
class Segment:
    """``[end of the segment before, end)`` belongs to ``arm``."""

    end: int
    arm: str


def point_of(salt: str, subject: str) -> int:
    """Where ``subject`` falls in the experiment that owns ``salt``; uniform over ``[0, SPACE)``."""
    digest = hashlib.sha256(f"{salt}\0{subject}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:4], "big")


def locate(segments: Sequence[Segment], point: int) -> str:
    """The arm that owns ``point``."""
    return segments[bisect_right([segment.end for segment in segments], point)].arm


def quotas(weights: Mapping[str, float]) -> dict[str, int]:
    """Points per arm: proportional to ``weights``, summing to ``SPACE``, at least one each."""
    total = sum(weights.values())
    exact = {arm: weight / total * SPACE for arm, weight in weights.items()}
    points = {arm: max(1, int(share)) for arm, share in exact.items()}
    # What rounding left over (or took too much of) goes to the largest arm: a few points in 2^32.
    largest = max(points, key=lambda arm: points[arm])
    points[largest] += SPACE - sum(points.values())
    return points


def lay_out(wanted: Mapping[str, int], before: Sequence[Segment] = ()) -> tuple[Segment, ...]:
    """Segments that give every arm its points and move as few points of ``before`` as possible."""
    if not before:
        before = (Segment(SPACE, ""),)  # nobody's: everything is free
    left = dict(wanted)
    pieces: list[tuple[int, str | None]] = []  # (length, owner or None where it was cut free)
    start = 0
    for segment in before:
        length = segment.end - start
        start = segment.end
        kept = min(length, left.get(segment.arm, 0))
        if kept:
            left[segment.arm] -= kept
            pieces.append((kept, segment.arm))
        if length > kept:
            pieces.append((length - kept, None))
    return _fill(pieces, left)


def _fill(pieces: list[tuple[int, str | None]], left: dict[str, int]) -> tuple[Segment, ...]:
    """Give the free pieces to the arms that still lack points, joining equal neighbours."""
    segments: list[Segment] = []
    end = 0

    def append(length: int, arm: str) -> None:
        nonlocal end
        end += length
        if segments and segments[-1].arm == arm:
            segments.pop()
        segments.append(Segment(end, arm))

    hungry = [arm for arm, points in left.items() if points]
    for length, owner in pieces:
        if owner is not None:
            append(length, owner)
            continue
        while length:
            arm = hungry[0]
            given = min(length, left[arm])
            append(given, arm)
            length -= given
            left[arm] -= given
            if not left[arm]:
                hungry.pop(0)
    assert end == SPACE
    return tuple(segments)
