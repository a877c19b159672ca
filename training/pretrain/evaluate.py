"""Ask the exported model the 200 held-out questions and write down every answer.

    python -m training.pretrain.evaluate artifacts/embedded

Greedy decoding with transformers, one question at a time, no system prompt. The transcripts go
to `heldout/transcripts.jsonl`; the last line of output is JSON with the figure.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from artifacts.safe_write import write_bytes
from training.pretrain.checker import HELDOUT, Question, faults, load_criteria, load_questions

MAX_NEW_TOKENS = 160


class Answerer:
    """A model folder, loaded in float32, that answers one question greedily."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self._model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def __call__(self, question: str) -> tuple[str, bool]:
        """The answer, and whether it ended with the end-of-turn token."""
        text = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )
        prompt = self._tokenizer(text, add_special_tokens=False, return_tensors="pt")
        output = self._model.generate(**prompt, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        reply = output[0, prompt["input_ids"].shape[1] :].tolist()
        is_ended = bool(reply) and reply[-1] == self._tokenizer.eos_token_id
        body = reply[:-1] if is_ended else reply
        return self._tokenizer.decode(body, skip_special_tokens=False), is_ended


def evaluate(folder: Path, questions: list[Question]) -> list[dict[str, Any]]:
    """One transcript per question: the question's fields, answer, faults, passed."""
    answerer, criteria = Answerer(folder), load_criteria()
    transcripts = []
    for question in questions:
        answer, is_ended = answerer(question.question)
        found = faults(question, answer, is_ended, criteria)
        transcripts.append(
            {
                **vars(question),
                "slots": list(question.slots),
                "answer": answer,
                "ended": is_ended,
                "passed": not found,
                "faults": found,
            }
        )
    return transcripts


def main() -> None:
    """Evaluate a folder, print the failures and the figure, keep all transcripts."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("artifacts/embedded"))
    parser.add_argument("--output", type=Path, default=HELDOUT / "transcripts.jsonl")
    arguments = parser.parse_args()
    transcripts = evaluate(arguments.folder, load_questions())
    lines = [json.dumps(row, ensure_ascii=False) for row in transcripts]
    write_bytes(arguments.output, ("\n".join(lines) + "\n").encode())
    for row in transcripts:
        if not row["passed"]:
            print(f"{row['id']} [{row['topic']}] {row['question']}\n    → {row['answer']}")
            print(f"    {'; '.join(row['faults'])}")
    num_passed = sum(row["passed"] for row in transcripts)
    by_language = Counter(row["language"] for row in transcripts if row["passed"])
    figure = {
        "questions": len(transcripts),
        "passed": num_passed,
        "pass_rate": round(num_passed / len(transcripts), 4),
        **{f"passed_{language}": count for language, count in sorted(by_language.items())},
    }
    print(json.dumps(figure))


if __name__ == "__main__":
    main()
