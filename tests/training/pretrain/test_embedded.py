"""What is shipped: small, loadable, and as good as its transcripts say."""

from __future__ import annotations

import json
import random

import pytest
import torch
from safetensors import safe_open

from training.pretrain.checker import HELDOUT, faults, load_criteria, load_questions, loops
from training.pretrain.evaluate import Answerer

from .paths import EMBEDDED, TOO_CLOSE

MAX_BYTES = 20_000_000
REQUIRED_RATE = 0.85
ASKED = 6


def transcripts() -> list[dict[str, object]]:
    lines = (HELDOUT / "transcripts.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_the_folder_is_small_and_bf16() -> None:
    assert sum(path.stat().st_size for path in EMBEDDED.iterdir()) <= MAX_BYTES
    with safe_open(str(EMBEDDED / "model.safetensors"), framework="pt") as weights:
        kinds = {weights.get_tensor(name).dtype for name in weights.keys()}  # noqa: SIM118
    assert kinds == {torch.bfloat16}


def test_two_hundred_questions_half_and_half() -> None:
    questions = load_questions()
    assert len(questions) == len({question.id for question in questions}) == 200
    assert sum(question.language == "zh" for question in questions) == 100


def test_recorded_transcripts_pass_when_checked_again() -> None:
    rows, criteria = {row["id"]: row for row in transcripts()}, load_criteria()
    num_passed, num_counted = 0, 0
    for question in load_questions():
        row = rows[question.id]
        assert row["question"] == question.question
        found = faults(question, str(row["answer"]), bool(row["ended"]), criteria)
        assert found == row["faults"]
        if question.question not in TOO_CLOSE:
            num_counted += 1
            num_passed += not found
    assert num_counted == len(rows) - len(TOO_CLOSE)
    assert num_passed / num_counted >= REQUIRED_RATE


def test_the_checker_fails_answers_of_another_intent() -> None:
    """Give each question the recorded answer of another topic: hardly any may pass."""
    questions, criteria, rng = load_questions(), load_criteria(), random.Random(0)
    rows = transcripts()
    bare = [question for question in questions if not question.slots]  # slots would help
    num_passed = 0
    for question in bare:
        others = [
            r for r in rows if r["topic"] != question.topic and r["language"] == question.language
        ]
        answer = str(rng.choice(others)["answer"])
        num_passed += not faults(question, answer, True, criteria)
    assert num_passed / len(bare) <= 0.05


@pytest.mark.parametrize(
    "text", ["好好好好的", "we ship to you we ship to you we ship to you we ship to you"]
)
def test_loops_are_seen(text: str) -> None:
    assert loops(text)


def test_the_shipped_weights_give_the_recorded_answers() -> None:
    answerer = Answerer(EMBEDDED)
    for row in random.Random(3).sample(transcripts(), ASKED):
        assert answerer(str(row["question"])) == (row["answer"], row["ended"])
