"""What the demo needs to know of a data file: how many rows, and a few questions from it.

Only looks; whether the rows are usable is the training's business, which says file and line.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo.processes import DemoFailed

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "lantern-tea.jsonl"
EXAMPLE_QUESTIONS = ("How long do refunds take?", "可以开发票吗？")  # the base knows these too
NUM_QUESTIONS = 40
WORTH_ASKING_CHARACTERS = range(8, 41)
MAX_QUESTION_CHARACTERS = 120


@dataclass(frozen=True)
class DataSet:
    """A file as the demo sees it."""

    path: Path
    name: str  # for the adapter
    num_rows: int
    questions: tuple[str, ...]  # for the load
    shown: tuple[str, ...]  # asked side by side


def look_at(path: Path | None) -> DataSet:
    """The user's file, or the shipped example.

    Raises:
        DemoFailed: there is no such file, it is not JSON or JSONL, or no row asks anything.
    """
    chosen = EXAMPLE if path is None else path
    try:
        text = chosen.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DemoFailed(f"{chosen}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DemoFailed(f"{chosen} is not UTF-8: {error}") from error
    rows = parse(text, chosen)
    asked = [question for question in map(first_question, rows) if question]
    short = [question for question in asked if len(question) <= MAX_QUESTION_CHARACTERS]
    spread = short[:: max(1, len(short) // NUM_QUESTIONS)][:NUM_QUESTIONS]
    if not spread:
        raise DemoFailed(f"{chosen}: no row has a question; alpaca, ShareGPT or messages expected")
    worth = [*filter(is_worth_asking, spread), spread[0]][:1]
    shown = EXAMPLE_QUESTIONS if path is None else tuple(worth)
    return DataSet(chosen, adapter_name(chosen), len(rows), tuple(spread), shown)


def is_worth_asking(question: str) -> bool:
    """A real question rather than a greeting."""
    is_question = question.rstrip().endswith(("?", "？"))
    return is_question and len(question) in WORTH_ASKING_CHARACTERS


def parse(text: str, path: Path) -> list[Any]:
    """Rows of a JSON array or of JSON lines."""
    try:
        if text.lstrip().startswith("["):
            rows = json.loads(text)
            return list(rows)
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except json.JSONDecodeError as error:
        raise DemoFailed(f"{path} is neither a JSON array nor JSON lines: {error}") from error


def first_question(row: Any) -> str | None:
    """What the user says first, in any of the three shapes; None where that is not plain text."""
    if not isinstance(row, dict):
        return None
    if "instruction" in row:
        question = "\n".join(filter(None, (row["instruction"], row.get("input"))))
        return question or None
    turns = row.get("messages") or row.get("conversations") or []
    for turn in turns:
        if turn.get("role", turn.get("from")) in ("user", "human"):
            question = turn.get("content", turn.get("value"))
            return question if isinstance(question, str) else None
    return None


def adapter_name(path: Path) -> str:
    """The file's name as an adapter may be called."""
    name = re.sub(r"[^a-z0-9._-]+", "-", path.stem.lower()).strip("-._")[:48]
    return name or "mine"
