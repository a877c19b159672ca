"""Rows like other rows: of another set, or of their own. Evaluation sets keep their rows."""

from __future__ import annotations

from typing import Any

from training.config import TrainingConfig
from training.data.row_set import LoadedRow, row_text
from training.doctor.near import Likeness, find_near_duplicates
from training.doctor.report import pair_places


class Comparison:
    """Exact and near duplicates between sets of distinct rows; the last set is the training data.

    A row goes before one of a set that stands earlier.
    """

    def __init__(self, config: TrainingConfig, sets: dict[str, list[LoadedRow]]) -> None:
        self._mode = config.near_duplicates
        self._threshold = config.near_duplicate_threshold
        self._sets = sets
        self._exact = self._find_exact()
        # By content, so that what stays does not depend on the order of files.
        self._rows = [
            (name, row)
            for name, each in self._sets.items()
            for row in sorted(each, key=lambda row: row.identity)
            if (name, row.number) not in self._exact
        ]
        self._likeness = self._find_near()
        self._clusters: dict[int, int] = {}
        self._near: dict[tuple[str, int], tuple[str, LoadedRow]] = {}
        for (name, row), original, cluster in zip(
            self._rows, self._likeness.original, self._likeness.cluster, strict=True
        ):
            if original is not None:
                self._near[name, row.number] = self._rows[original]
            if name == "data":
                self._clusters[row.number] = cluster

    def _find_exact(self) -> dict[tuple[str, int], tuple[str, LoadedRow]]:
        """Rows that stand in a set named before theirs."""
        first: dict[bytes, tuple[str, LoadedRow]] = {}
        found: dict[tuple[str, int], tuple[str, LoadedRow]] = {}
        for name, each in self._sets.items():
            for row in each:
                if row.identity in first:
                    found[name, row.number] = first[row.identity]
                else:
                    first[row.identity] = (name, row)
        return found

    def _find_near(self) -> Likeness:
        if self._mode == "off":
            return Likeness([None] * len(self._rows), list(range(len(self._rows))))
        texts = [row_text(row.record) for _, row in self._rows]
        num_fixed = sum(name != "data" for name, _ in self._rows)
        return find_near_duplicates(texts, self._threshold, num_fixed)

    def kept(self, name: str) -> list[LoadedRow]:
        """The rows of a set that are trained or evaluated on."""
        gone = self._exact.keys() | (self._near.keys() if self._mode == "remove" else set())
        return [row for row in self._sets[name] if (name, row.number) not in gone]

    def cluster(self, row: LoadedRow) -> int | None:
        """Equal for rows of the training data that are alike and all stay."""
        return self._clusters[row.number] if self._mode == "report" else None

    def near_figures(self) -> dict[str, Any]:
        pairs = self._pairs(self._near, "data")
        return {
            "mode": self._mode,
            "threshold": self._threshold,
            "rows": len(pairs),
            "pairs": pair_places(pairs),
        }

    def overlap_figures(self) -> dict[str, dict[str, Any]]:
        return {
            name: {
                "exact": len(exact := self._pairs(self._exact, name)),
                "near": len(near := self._pairs(self._near, name)),
                "pairs": pair_places([*exact, *near]),
            }
            for name in self._sets
            if name != "data"
        }

    def _pairs(
        self, found: dict[tuple[str, int], tuple[str, LoadedRow]], like: str
    ) -> list[tuple[str, str]]:
        """Places of training rows that are like a row of the set ``like``."""
        rows = {row.number: row for row in self._sets["data"]}
        return [
            (rows[number].place, other.place)
            for (name, number), (where, other) in found.items()
            if name == "data" and where == like
        ]
