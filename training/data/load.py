"""The data half of ``load``: every file read, checked, cleaned, rendered, deduplicated and split.

All files are read before anything is refused, so that one run shows all that is wrong; ``loraloop
data check`` looks at the same examination. Duplicates go before the split: the same row in train
and test would make the gate praise memory. No torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from artifacts.chat import ChatRenderer
from artifacts.errors import InvalidData
from training.config import TrainingConfig
from training.data.compare import Comparison
from training.data.examples import Shape
from training.data.row_set import LoadedRow, RowSet, Wanted, read_set
from training.data.rows import BadRow
from training.data.split import Split, SplitRow, split_rows
from training.doctor.cleaning import RULES
from training.doctor.edits import Change, Treatment
from training.doctor.report import NUM_LISTED, Findings, Report
from training.keys.data import DataSource


@dataclass(frozen=True, slots=True)
class TrainingData:
    """The split rows with everything that was found on the way."""

    split: Split
    data_hash: str  # over the rendered distinct rows of each part
    sources: list[dict[str, str]]  # name and SHA-256 of all that was read
    counts: dict[str, int]
    report: Report
    changes: list[Change]  # what cleaning and redaction changed


@dataclass(frozen=True, slots=True)
class Examination:
    """All that is known of the data, whether it can be trained or not."""

    report: Report
    data: RowSet
    problem: InvalidData | None  # why they cannot be trained


def load_data(config: TrainingConfig, renderer: ChatRenderer, max_length: int) -> TrainingData:
    """Raises InvalidData listing the first 20 bad rows if there are more than ``max_bad_rows``,
    before rows are compared with each other."""
    sets = _read_sets(config, renderer, max_length)
    problem = _find_problem(sets, config.max_bad_rows, max_length)
    if problem is not None:
        raise problem
    compared = Comparison(config, {name: each.rows for name, each in sets.items()})
    return _assemble(config, compared, _report(config, sets, compared, max_length), sets)


def examine(
    config: TrainingConfig,
    renderer: ChatRenderer,
    max_length: int,
    against: Sequence[DataSource] = (),
) -> Examination:
    """As much as can be said of the data, whatever is wrong with them; ``against`` are rows that
    they are compared with, too."""
    sets = _read_sets(config, renderer, max_length)
    compared = Comparison(config, {name: each.rows for name, each in sets.items()})
    report = _report(config, sets, compared, max_length)
    problem = _find_problem(sets, config.max_bad_rows, max_length)
    if against:
        other = read_set(against, renderer, _plain(wanted_rows(config, max_length)))
        both = {"against": other.rows, "data": sets["data"].rows}
        report.others["against"] = other.findings
        report.overlap.update(Comparison(config, both).overlap_figures())
        problem = _all_broken([*sets.values(), other]) or problem
    if problem is None:
        try:
            training = _assemble(config, compared, report, sets)
            return Examination(training.report, sets["data"], None)
        except InvalidData as error:
            problem = error
    return Examination(replace(report, problem=str(problem)), sets["data"], problem)


def _read_sets(
    config: TrainingConfig, renderer: ChatRenderer, max_length: int
) -> dict[str, RowSet]:
    """The training rows come last: an evaluation set keeps what stands in both."""
    wanted = wanted_rows(config, max_length)
    named = {"test_data": config.test_data, "validation_data": config.validation_data}
    sets = {
        name: read_set(sources, renderer, _plain(wanted))
        for name, sources in named.items()
        if sources
    }
    return {**sets, "data": read_set(config.data, renderer, wanted)}


def _plain(wanted: Wanted) -> Wanted:
    """For rows that are neither split nor sampled."""
    return replace(wanted, columns={}, label_column=None)


def _report(
    config: TrainingConfig, sets: dict[str, RowSet], compared: Comparison, max_length: int
) -> Report:
    return Report(
        data=sets["data"].findings,
        settings=config.model_dump(mode="json", include=LOOKED_FOR) | {"max_length": max_length},
        near_duplicates=compared.near_figures(),
        overlap=compared.overlap_figures(),
        others={name: each.findings for name, each in sets.items() if name != "data"},
    )


LOOKED_FOR = {
    *("max_bad_rows", "clean", "redact_personal_data", "near_duplicates", "split", "seed"),
    *("near_duplicate_threshold", "group_by", "stratify_by"),
}


def wanted_rows(config: TrainingConfig, max_length: int) -> Wanted:
    """How the training rows are read."""
    rules = tuple(RULES) if config.clean is True else config.clean or ()
    columns = {"group_by": config.group_by, "stratify_by": config.stratify_by}
    shape = Shape(
        max_length,
        config.long_rows,
        config.window_overlap,
        counts_kinds=config.sampling == "inverse_frequency",
        kind_column=config.sample_by,
        objective=config.objective,
    )
    return Wanted(
        treatment=Treatment(rules, config.redact_personal_data),
        shape=shape,
        seed=config.seed,
        columns={column: key for key, column in columns.items() if column is not None},
        label_column=config.stratify_by,
    )


# --- what cannot be trained ---


def _find_problem(
    sets: dict[str, RowSet], max_bad_rows: int, max_length: int
) -> InvalidData | None:
    every = list(sets.values())
    if (broken := _all_broken(every)) is not None:
        return broken
    bad = [row for each in every for row in each.bad]
    num_rows = sum(each.findings.num_rows for each in every)
    if len(bad) > max_bad_rows:
        return too_many_bad(bad, len(bad), num_rows, max_bad_rows)
    empty = [each.findings for each in every if not each.rows]
    return nothing_left(empty[0], max_length) if empty else None


def _all_broken(sets: Sequence[RowSet]) -> InvalidData | None:
    """All files that cannot be read to their ends, in one error."""
    broken = [error for each in sets for error in each.broken]
    if not broken:
        return None
    rows = [row for error in broken for row in error.rows]
    return InvalidData("\n".join(map(str, broken)), rows[:NUM_LISTED])


def too_many_bad(
    bad: Sequence[BadRow], num_bad: int, num_rows: int, max_bad_rows: int
) -> InvalidData:
    """``bad`` holds at least the first ``NUM_LISTED`` of them."""
    listed = [f"  {row.file}:{row.line}: {row.reason}" for row in bad[:NUM_LISTED]]
    if num_bad > NUM_LISTED:
        listed.append(f"  … and {num_bad - NUM_LISTED} more")
    head = f"{num_bad} of {num_rows} rows cannot be used (max_bad_rows={max_bad_rows}):"
    return InvalidData("\n".join([head, *listed]), list(bad[:NUM_LISTED]))


def nothing_left(found: Findings, max_length: int) -> InvalidData:
    """Why a set of rows has none that can be learned."""
    if found.num_too_long:
        return InvalidData(
            f"in all {found.num_too_long} usable rows the reply starts after max_length="
            f"{max_length} tokens; raise max_length or shorten the prompts"
        )
    if found.num_undesirable:
        return InvalidData(
            f"all {found.num_undesirable} usable rows are labelled as undesirable replies, which "
            "are left out; add rows with desirable ones"
        )
    return InvalidData(f"none of {found.num_rows} rows can be used")


# --- parts ---


def _assemble(
    config: TrainingConfig, compared: Comparison, report: Report, sets: dict[str, RowSet]
) -> TrainingData:
    """Raises InvalidData if there are too few rows to split."""
    rows = compared.kept("data")
    if not rows:
        raise InvalidData(
            "every training row also stands in validation_data or test_data; give other rows"
        )
    parts = split_rows(
        [
            SplitRow(row.identity, _ties(row, config, compared), _stratum(row, config))
            for row in rows
        ],
        part_fractions(config),
        config.seed,
    )
    chosen = {
        "train": [rows[place] for place in parts.train],
        "validation": [rows[place] for place in parts.validation],
        "test": [rows[place] for place in parts.test],
    }
    for key, part in (("validation_data", "validation"), ("test_data", "test")):
        if getattr(config, key):
            chosen[part] = sorted(compared.kept(key), key=lambda row: row.identity)
            if not chosen[part]:
                raise InvalidData(f"every row of {key} also stands in test_data; give other rows")
    found = report.data
    counted = ("num_rows", "num_bad", "num_too_long", "num_truncated", "num_windowed")
    totals = report.totals()
    return TrainingData(
        split=Split(**{
            name: [example for row in part for example in row.examples]
            for name, part in chosen.items()
        }),
        data_hash=_hash(chosen),
        sources=[source for each in sets.values() for source in each.sources],
        counts={
            **{name: getattr(found, name) for name in counted},
            "num_undesirable": found.num_undesirable,
            "num_duplicates": found.num_duplicates,
            "num_near_duplicates": totals["num_near_duplicates"],
            "num_overlapping": totals["num_overlapping"],
        },
        report=replace(report, parts={name: len(part) for name, part in chosen.items()}),
        changes=sets["data"].changes,
    )  # fmt: skip


def part_fractions(config: TrainingConfig) -> tuple[float, float, float]:
    """A part that has rows of its own takes none of the others'."""
    _, validation, test = config.split
    validation = 0.0 if config.validation_data else validation
    test = 0.0 if config.test_data else test
    return 1.0 - validation - test, validation, test


def _ties(row: LoadedRow, config: TrainingConfig, compared: Comparison) -> tuple[Any, ...]:
    """What keeps the row in one part with others."""
    ties: list[Any] = []
    if config.group_by is not None:
        ties.append(("value", repr(row.record.fields[config.group_by])))
    if (cluster := compared.cluster(row)) is not None:
        ties.append(("alike", cluster))
    return tuple(ties)


def _stratum(row: LoadedRow, config: TrainingConfig) -> str:
    return "" if config.stratify_by is None else repr(row.record.fields[config.stratify_by])


def _hash(parts: dict[str, list[LoadedRow]]) -> str:
    digest = hashlib.sha256()
    for name, rows in parts.items():
        digest.update(f"{name} {len(rows)}\n".encode())
        digest.update(b"".join(sorted(row.identity for row in rows)))
    return digest.hexdigest()
