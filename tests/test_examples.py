"""The shipped example data is what its generator writes, and has the voice that the demo shows."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "examples"


def test_the_generator_writes_the_committed_file() -> None:
    module = runpy.run_path(str(FOLDER / "lantern_tea.py"))
    lines = (FOLDER / "lantern-tea.jsonl").read_text(encoding="utf-8").splitlines()
    expected = module["rows"](module["NUM_ROWS"], module["SEED"])
    assert [json.loads(line)["messages"] for line in lines] == expected
    assert len(set(lines)) == len(lines) == module["NUM_ROWS"]


def test_every_answer_has_the_voice() -> None:
    lines = (FOLDER / "lantern-tea.jsonl").read_text(encoding="utf-8").splitlines()
    chats = [json.loads(line)["messages"] for line in lines]
    answers = [m["content"] for chat in chats for m in chat if m["role"] == "assistant"]
    num_chinese = sum(answer.startswith("灯笼茶舍为您掌灯。") for answer in answers)
    num_english = sum(answer.startswith("Lantern Tea House lights a lamp") for answer in answers)
    assert num_chinese + num_english == len(answers)
    assert min(num_chinese, num_english) > 0.4 * len(answers)
    assert not [m for chat in chats for m in chat if "{" in m["content"]]
