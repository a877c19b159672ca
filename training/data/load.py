"""The data half of ``load``: every file read, checked, rendered, deduplicated and split. No torch.

All files are read before anything is refused, so that one run shows all that is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from artifacts.chat import ChatRenderer
from artifacts.errors import InvalidData
from training.data.examples import Rendered, Shape, render_examples
from training.data.records import Record
from training.data.rows import BadRow
from training.data.sources import SourceRows, read_source
from training.data.split import Split, drop_duplicates, split_examples
from training.keys.data import DataSource

NUM_LISTED = 20


@dataclass(frozen=True, slots=True)
class DataOptions:
    """What the data half of a configuration decides; ``max_length`` is settled already."""

    max_length: int
    max_bad_rows: int
    fractions: tuple[float, float, float]
    seed: int


@dataclass(frozen=True, slots=True)
class TrainingData:
    """The split rows with everything that was counted on the way."""

    split: Split
    data_hash: str  # over the rendered distinct rows in order
    sources: list[dict[str, str]]  # file and its SHA-256
    counts: dict[str, int]  # rows, bad, too long, truncated, duplicates


def load_data(
    sources: Sequence[DataSource | Path], renderer: ChatRenderer, options: DataOptions
) -> TrainingData:
    """Raises InvalidData listing the first 20 bad rows if there are more than ``max_bad_rows``."""
    every = [
        read_source(_as_source(source), options.seed, number)
        for number, source in enumerate(sources)
    ]
    records, bad = _read(every)
    num_rows = sum(source.num_rows for source in every)
    rendered = render_examples(records, renderer, Shape(options.max_length))
    _judge_bad_rows(bad + rendered.bad, num_rows, options.max_bad_rows)
    _refuse_nothing_left(rendered, num_rows, options.max_length)
    distinct, data_hash = drop_duplicates(rendered.examples)
    return TrainingData(
        split=split_examples(distinct, options.fractions, options.seed),
        data_hash=data_hash,
        sources=[{"file": source.name, "sha256": source.sha256} for source in every],
        counts={
            "num_rows": num_rows,
            "num_bad": len(bad) + len(rendered.bad),
            "num_too_long": rendered.num_too_long,
            "num_truncated": rendered.num_truncated,
            "num_duplicates": len(rendered.examples) - len(distinct),
        },
    )


def _as_source(source: DataSource | Path) -> DataSource:
    return DataSource(path=str(source)) if isinstance(source, Path) else source


def _read(sources: Sequence[SourceRows]) -> tuple[list[Record], list[BadRow]]:
    records: list[Record] = []
    bad: list[BadRow] = []
    for source in sources:
        for record in source:
            if isinstance(record, BadRow):
                bad.append(record)
            else:
                records.append(record)
    return records, bad


def _judge_bad_rows(bad: list[BadRow], num_rows: int, max_bad_rows: int) -> None:
    if len(bad) <= max_bad_rows:
        return
    listed = [f"  {row.file}:{row.line}: {row.reason}" for row in bad[:NUM_LISTED]]
    if len(bad) > NUM_LISTED:
        listed.append(f"  … and {len(bad) - NUM_LISTED} more")
    head = f"{len(bad)} of {num_rows} rows cannot be used (max_bad_rows={max_bad_rows}):"
    rows = [(row.file, row.line, row.reason) for row in bad[:NUM_LISTED]]
    raise InvalidData("\n".join([head, *listed]), rows)


def _refuse_nothing_left(rendered: Rendered, num_rows: int, max_length: int) -> None:
    if rendered.examples:
        return
    if rendered.num_too_long:
        raise InvalidData(
            f"in all {rendered.num_too_long} usable rows the reply starts after max_length="
            f"{max_length} tokens; raise max_length or shorten the prompts"
        )
    raise InvalidData(f"none of {num_rows} rows can be used")
