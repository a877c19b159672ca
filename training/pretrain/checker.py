"""The yardstick: is an answer fluent, in the question's language, and right in its intent?

The meaning of "right" (`heldout/criteria.yaml`) and the questions were fixed before the corpus
generator existed. Everything here is a pure function of the texts, so anyone can recompute the
figure from the committed transcripts.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

HELDOUT = Path(__file__).parent / "heldout"
MAX_REPEATS = 3  # the same run of four units this often is a loop, not an answer


@dataclass(frozen=True)
class Question:
    """One held-out question, and the slot values that its answer has to contain."""

    id: str
    language: str
    intent: str
    topic: str
    question: str
    slots: tuple[str, ...]


def load_questions(path: Path = HELDOUT / "questions.jsonl") -> list[Question]:
    """Read the 200 held-out questions."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [Question(**{**row, "slots": tuple(row["slots"])}) for row in rows]


def load_criteria(path: Path = HELDOUT / "criteria.yaml") -> dict[str, dict[str, list[str]]]:
    """Read topic → language → groups of alternatives."""
    criteria: dict[str, dict[str, list[str]]] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return criteria


def faults(
    question: Question, answer: str, ended: bool, criteria: dict[str, dict[str, list[str]]]
) -> list[str]:
    """What is wrong with an answer; empty means that it passes."""
    found = [] if ended else ["does not end"]
    if not in_language(answer, question):
        found.append(f"not in {question.language}")
    if loops(answer):
        found.append("repeats itself")
    if not 4 <= len(answer) <= 400 or "\ufffd" in answer or re.search(r"<\|?\w+\|?>", answer):
        found.append("malformed")
    folded = answer.casefold()
    found += [f"slot missing: {slot}" for slot in question.slots if slot.casefold() not in folded]
    found += [
        f"intent: none of {group}"
        for group in criteria[question.topic][question.language]
        if not re.search(group, answer, re.IGNORECASE)
    ]
    return found


def in_language(answer: str, question: Question) -> bool:
    """Chinese answers are mostly Chinese characters, English ones hold none (slots aside)."""
    for slot in question.slots:
        answer = answer.replace(slot, "")
    num_han = len(re.findall(r"[\u4e00-\u9fff]", answer))
    num_latin = len(re.findall(r"[A-Za-z]", answer))
    return num_han > num_latin if question.language == "zh" else num_han == 0 and num_latin > 0


def loops(answer: str) -> bool:
    """True if a run of four units (Chinese characters or words) comes back again and again."""
    units = re.findall(r"[\u4e00-\u9fff]|[A-Za-z']+", answer)
    runs = [tuple(units[i : i + 4]) for i in range(len(units) - 3)]
    doubled = any(a == b == c for a, b, c in zip(units, units[1:], units[2:], strict=False))
    return doubled or any(runs.count(run) >= MAX_REPEATS for run in set(runs))
