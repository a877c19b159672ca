"""The data half of ``load`` with ``streaming: true``: for files larger than memory.

The rows, their split and its hash are those of ``training.data.load`` with near duplicates off.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from artifacts.chat import ChatRenderer
from artifacts.errors import InvalidData
from training.config import TrainingConfig
from training.data.load import (
    LOOKED_FOR,
    TrainingData,
    nothing_left,
    part_fractions,
    too_many_bad,
    wanted_rows,
)
from training.data.spill import SpilledExamples
from training.data.split import Split
from training.data.stream_set import StreamedSet, stream_set
from training.data.streamed import distinct_rows, split_streamed
from training.doctor.report import Report

_PARTS = {"test_data": "test", "validation_data": "validation"}


def load_streamed(
    config: TrainingConfig, renderer: ChatRenderer, max_length: int, folder: Path
) -> TrainingData:
    """Rows lie in nameless files on the disk of ``folder``. Raises what ``load_data`` raises, and
    OSError on a full disk."""
    wanted = wanted_rows(config, max_length)
    sets = {
        key: stream_set(sources, renderer, wanted, folder)
        for key in _PARTS
        if (sources := getattr(config, key))
    }
    sets["data"] = data = stream_set(config.data, renderer, wanted, folder)
    _refuse(list(sets.values()), config.max_bad_rows, max_length)
    parts, overlap = _split(config, sets)
    report = Report(
        data=data.findings,
        settings=config.model_dump(mode="json", include=LOOKED_FOR)
        | {"max_length": max_length, "near_duplicates": "off"},
        near_duplicates={
            "mode": "off",
            "threshold": config.near_duplicate_threshold,
            "rows": 0,
            "pairs": [],
        },
        overlap={name: {"exact": count, "near": 0, "pairs": []} for name, count in overlap.items()},
        others={name: each.findings for name, each in sets.items() if name != "data"},
        parts={name: part.num_rows for name, part in parts.items()},
    )
    found = data.findings
    counted = ("num_rows", "num_bad", "num_too_long", "num_truncated", "num_windowed",
               "num_undesirable", "num_duplicates")  # fmt: skip
    return TrainingData(
        split=Split(**parts),
        data_hash=_hash(parts),
        sources=[source for each in sets.values() for source in each.sources],
        counts={
            **{name: getattr(found, name) for name in counted},
            "num_near_duplicates": 0,
            "num_overlapping": sum(overlap.values()),
        },
        report=report,
        changes=[],
    )


def _refuse(sets: list[StreamedSet], max_bad_rows: int, max_length: int) -> None:
    broken = [error for each in sets for error in each.broken]
    if broken:
        raise InvalidData("\n".join(map(str, broken)), [r for error in broken for r in error.rows])
    bad = [row for each in sets for row in each.bad]
    num_bad = sum(each.findings.num_bad for each in sets)
    if num_bad > max_bad_rows:
        num_rows = sum(each.findings.num_rows for each in sets)
        raise too_many_bad(bad, num_bad, num_rows, max_bad_rows)
    for each in sets:
        if not len(each.examples):
            raise nothing_left(each.findings, max_length)


def _split(
    config: TrainingConfig, sets: dict[str, StreamedSet]
) -> tuple[dict[str, SpilledExamples], dict[str, int]]:
    """The parts, and how many training rows each evaluation set took away."""
    rows, overlap = sets["data"].examples, {}
    earlier: list[SpilledExamples] = []
    given: dict[str, SpilledExamples] = {}
    for key, part in _PARTS.items():
        if key not in sets:
            continue
        own = distinct_rows(sets[key].examples, earlier)
        if not len(own):
            raise InvalidData(f"every row of {key} also stands in test_data; give other rows")
        given[part] = own.by_identity()
        earlier.append(own)
        left = distinct_rows(rows, [own])
        overlap[key], rows = rows.num_rows - left.num_rows, left
    if not len(rows):
        raise InvalidData(
            "every training row also stands in validation_data or test_data; give other rows"
        )
    train, validation, test = split_streamed(rows, part_fractions(config), config.seed)
    return {"train": train, "validation": validation, "test": test} | given, overlap


def _hash(parts: dict[str, SpilledExamples]) -> str:
    digest = hashlib.sha256()
    for name, part in parts.items():
        digest.update(f"{name} {part.num_rows}\n".encode())
        digest.update(part.row_identities().tobytes())
    return digest.hexdigest()
