"""One file with every problem that the doctor knows, and the report names all of them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from loraloop import app
from training.doctor.check import Checked, check_data

WORDS = [f"word{i}" for i in range(400)]


def chat(question: str, answer: str, **reply: Any) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer, **reply},
        ]
    }


def sentence(seed: int, count: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=count))


LONG = sentence(1000, 30)  # 200 bytes: a word more or less leaves most 5-grams as they are

# name of the problem → lines of the file that have it
ROTTEN: dict[str, list[Any]] = {
    "sound": [chat(f"Tell me about {sentence(i, 3)}", sentence(i, 8)) for i in range(24)],
    "not JSON": ['{"messages": [', "[1, 2"],
    "not an object": [17],
    "wrong columns": [{"question": "Q", "answer": "A"}],
    "another form": [{"instruction": "Q", "output": "A"}],
    "a preference pair": [{**chat("Q", "A"), "chosen": "x", "rejected": "y"}],
    "no reply": [{"messages": [{"role": "user", "content": "Q"}]}],
    "an unknown role": [
        {"messages": [{"role": "critic", "content": "?"}, *chat("Q", "A")["messages"]]}
    ],
    "fully masked": [chat("Why?", "Not this one.", weight=0)],
    "too long": [chat("q" * 300, "never seen")],
    "truncated": [chat("Go on", sentence(77, 60))],
    "exact duplicate": [chat(f"Tell me about {sentence(3, 3)}", sentence(3, 8))] * 2,
    "near duplicate": [chat("Repeat", LONG), chat("Repeat!", LONG), chat("repeat", LONG + ".")],
    "in the evaluation set": [chat("Held", sentence(2000, 25)), chat("Kept", sentence(2001, 25))],
    "personal": [
        chat("打给谁？", "请打13800138000，或写信。"),
        chat("Which card?", "Card 4012888888881881, id 11010519491231002X, li.lei@example.com."),
    ],
    "unclean": [
        chat("<p>What&nbsp;is it?</p>", "It\x00 costs １２３ since 2024年1月2日."),
        chat("Show <b>code</b>", "Write `<b>` and a < b,\u3000nothing  more."),
    ],
    "Chinese": [chat("这是什么？", "这是一个很好的问题，我来回答。")],
    "mixed": [chat("这个 word 是什么意思 please", "这里 means 这里 word word")],
    "Japanese": [chat("これはなんですか", "それはペンです")],
}  # fmt: skip


def lines_of(problem: str) -> list[int]:
    """Where its rows stand, counted from 1."""
    before = 0
    for name, rows in ROTTEN.items():
        if name == problem:
            return list(range(before + 1, before + len(rows) + 1))
        before += len(rows)
    raise KeyError(problem)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """rotten.jsonl begins with a byte order mark; held.jsonl is in GBK."""
    folder = tmp_path_factory.mktemp("rotten")
    lines = [r if isinstance(r, str) else json.dumps(r) for rows in ROTTEN.values() for r in rows]
    (folder / "rotten.jsonl").write_text("\n".join(lines), encoding="utf-8-sig")
    held, kept = ROTTEN["in the evaluation set"]
    kept = chat("kept", kept["messages"][1]["content"].upper())
    other = chat("评测", "这一行只在评测集里出现。")
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in (held, kept, other))
    (folder / "held.jsonl").write_bytes(text.encode("gb18030"))
    return folder


def check(folder: Path, tiny_base: Path, **keys: Any) -> Checked:
    settings = {"base": str(tiny_base), "max_length": 256, **keys}
    (checked,) = check_data([str(folder / "rotten.jsonl")], settings, [str(folder / "held.jsonl")])
    return checked


def test_every_problem_is_counted_once(folder: Path, tiny_base: Path) -> None:
    report = check(folder, tiny_base, max_bad_rows=20).report
    data = report.data
    assert data.num_rows == sum(map(len, ROTTEN.values()))
    bad = ["not JSON", "not an object", "wrong columns", "another form", "a preference pair",
           "no reply", "an unknown role", "fully masked"]  # fmt: skip
    bad_lines = sorted(line for name in bad for line in lines_of(name))
    assert [row["line"] for row in data.bad_rows] == bad_lines
    assert data.num_bad == sum(data.bad_rules.values()) == len(bad_lines)
    assert data.num_masked == 1
    assert (data.num_too_long, data.num_truncated, data.num_duplicates) == (1, 1, 2)
    assert data.num_usable == data.num_rows - len(bad_lines) - 1 - 2
    assert report.near_duplicates["rows"] == 2
    near = {f"{folder}/rotten.jsonl:{line}" for line in lines_of("near duplicate")}
    assert all({pair["row"], pair["like"]} <= near for pair in report.near_duplicates["pairs"])
    overlap = report.overlap["against"]
    assert (overlap["exact"], overlap["near"]) == (1, 1)
    held = [f"{folder}/held.jsonl:{line}" for line in (1, 2)]
    assert [pair["like"] for pair in overlap["pairs"]] == held
    assert report.problem is None
    assert sum(report.parts.values()) == data.num_usable - 2


def test_reasons_and_personal_data_name_their_lines(folder: Path, tiny_base: Path) -> None:
    data = check(folder, tiny_base, max_bad_rows=20).report.data
    reasons = {row["line"]: row["reason"] for row in data.bad_rows}
    for problem, reason in {
        "not JSON": "not valid JSON",
        "not an object": "must be an object, not a number",
        "wrong columns": "no known form",
        "another form": "alpaca form in a file of openai form",
        "no reply": "the last message must be assistant's",
        "an unknown role": "critic",
        "fully masked": "there is nothing to learn",
    }.items():
        assert reason in reasons[lines_of(problem)[0]]
    assert data.personal_data["kinds"] == {"phone": 1, "email": 1, "bank_card": 1, "id_card": 1}
    assert [place["line"] for place in data.personal_data["places"]] == lines_of("personal")
    sound = data.num_usable - 4
    assert data.languages == {"zh": 2, "en": sound, "mixed": 1, "other": 1}
    assert "13800138000" not in json.dumps(data.personal_data)  # a report is kept and sent


def test_cleaning_and_redaction_are_tried_and_counted_by_rule(
    folder: Path, tiny_base: Path
) -> None:
    checked = check(folder, tiny_base, max_bad_rows=20, clean=True, redact_personal_data=True)
    cleaning = checked.report.data.cleaning
    counts = {rule: done["rows"] for rule, done in cleaning.items()}
    assert counts == {"html": 2, "nfkc": 2, "control": 1, "dates": 1, "whitespace": 2,
                      "personal": 2, "any": 4}  # fmt: skip
    texts = {row.record.line: row.record for row in checked.rows}
    first, second = lines_of("unclean")
    assert _words(texts[first]) == ["What is it?", "It costs 123 since 2024-01-02."]
    assert _words(texts[second]) == ["Show code", "Write `<b>` and a < b, nothing more."]
    assert "[PHONE]" in _words(texts[lines_of("personal")[0]])[1]
    assert cleaning["dates"]["before"].endswith("2024年1月2日.")
    assert cleaning["dates"]["after"].endswith("2024-01-02.")


def _words(record: Any) -> list[str]:
    return [message["content"] for message in record.messages]


def test_the_command_shows_all_of_it_and_fails_by_the_threshold(
    folder: Path, tiny_base: Path
) -> None:
    command = ["data", "check", str(folder / "rotten.jsonl"), "--base", str(tiny_base)]
    command += ["--against", str(folder / "held.jsonl"), "--preview", "2"]
    command += ["--plot", str(folder / "lengths.png")]
    answer = CliRunner().invoke(app, command)
    assert answer.exit_code == 1
    for said in (
        f"{folder}/rotten.jsonl:{lines_of('not JSON')[0]}: not valid JSON",
        "9 bad rows",
        "these data cannot be trained",
        "9 of 49 rows cannot be used (max_bad_rows=0)",
        "note: held.jsonl is in GB18030, not UTF-8: decoded",
        "2 exact duplicates, removed",
        "1 bad because nothing in them is to be learned",
        "rows that also stand in against: 1 exactly, 1 nearly",
        "personal data in 2 rows (1 phone, 1 bank_card, 1 id_card, 1 email), not redacted",
        "<|bos|><|user|>Tell me about",
        "«<|end|>»",  # no terminal, so no colour: marked
    ):
        assert said in answer.stdout, said
    assert (folder / "lengths.png").read_bytes().startswith(b"\x89PNG")
    answer = CliRunner().invoke(app, [*command, "--max-bad-rows", "9", "--json"])
    assert answer.exit_code == 0
    report = json.loads(answer.stdout)
    assert report["data"]["num_bad"] == 9
    assert report["problem"] is None
