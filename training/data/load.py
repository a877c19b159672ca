"""The data half of ``load``: every file read, checked, rendered, deduplicated and split. No torch.

All files are read before anything is refused, so that one run shows all that is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from artifacts.chat import ChatRenderer
from artifacts.errors import InvalidData
from artifacts.safe_write import sha256_file
from training.data.examples import Rendered, render_examples
from training.data.formats import Conversation, read_conversations
from training.data.rows import BadRow, read_rows
from training.data.split import Split, drop_duplicates, split_examples

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


def load_data(paths: Sequence[Path], renderer: ChatRenderer, options: DataOptions) -> TrainingData:
    """Raises InvalidData listing the first 20 bad rows if there are more than ``max_bad_rows``."""
    conversations, bad, num_rows = _read_files(paths)
    rendered = render_examples(conversations, renderer, options.max_length)
    _judge_bad_rows(bad + rendered.bad, num_rows, options.max_bad_rows)
    _refuse_nothing_left(rendered, num_rows, options.max_length)
    distinct, data_hash = drop_duplicates(rendered.examples)
    return TrainingData(
        split=split_examples(distinct, options.fractions, options.seed),
        data_hash=data_hash,
        sources=[{"file": path.name, "sha256": sha256_file(path)} for path in paths],
        counts={
            "num_rows": num_rows,
            "num_bad": len(bad) + len(rendered.bad),
            "num_too_long": rendered.num_too_long,
            "num_truncated": rendered.num_truncated,
            "num_duplicates": len(rendered.examples) - len(distinct),
        },
    )


def _read_files(paths: Sequence[Path]) -> tuple[list[Conversation], list[BadRow], int]:
    conversations: list[Conversation] = []
    bad: list[BadRow] = []
    num_rows = 0
    for path in paths:
        rows, unreadable = read_rows(path)
        found, unusable = read_conversations(rows)
        conversations += found
        bad += sorted([*unreadable, *unusable], key=lambda row: row.line)
        num_rows += len(rows) + len(unreadable)
    return conversations, bad, num_rows


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
