"""``loraloop data check``: exit codes, a training file's own data, and every kind of bad input."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from artifacts.base import open_base
from artifacts.chat import ChatRenderer
from loraloop import app
from tests.training.conftest import rows
from training.config import load_config
from training.data.examples import IGNORED, Example
from training.data.load import load_data
from training.doctor.check import read_question
from training.doctor.preview import LEARNED, READ, SPECIAL, render_masked


def check(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["data", "check", *map(str, arguments)])


def write(path: Path, values: list[Any]) -> Path:
    path.write_text("\n".join(map(json.dumps, values)), encoding="utf-8")
    return path


def training_file(folder: Path, tiny_base: Path, **keys: Any) -> Path:
    write(folder / "rows.jsonl", rows(40))
    settings = {"name": "tiny", "base": str(tiny_base), "data": str(folder / "rows.jsonl"), **keys}
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def test_a_training_file_is_checked_as_it_would_be_trained(tmp_path: Path, tiny_base: Path) -> None:
    write(tmp_path / "test.jsonl", rows(3))
    path = training_file(
        tmp_path, tiny_base, max_length=100, seed=3, clean=True, split=[0.7, 0.2, 0.1],
        test_data=str(tmp_path / "test.jsonl"),
    )  # fmt: skip
    answer = check(path, "--json")
    assert answer.exit_code == 0, answer.output
    report = json.loads(answer.stdout)
    base = open_base(tiny_base)
    data = load_data(load_config(path, []), ChatRenderer(base.tokenizer), 100)
    assert report["parts"] == data.report.parts == {"train": 30, "validation": 7, "test": 3}
    assert report == data.report.as_dict() | {"notes": []}
    assert report["overlap"]["test_data"]["exact"] == 3


def test_options_win_over_the_training_file(tmp_path: Path, tiny_base: Path) -> None:
    path = training_file(tmp_path, tiny_base, max_length=100)
    options = ["--max-length", "40", "--clean", "html, dates", "--redact", "--json"]
    report = json.loads(check(path, *options).stdout)
    assert report["settings"]["max_length"] == 40
    assert report["settings"]["clean"] == ["html", "dates"]
    assert report["settings"]["redact_personal_data"] is True
    assert report["data"]["num_truncated"] == 40


def test_streamed_data_are_checked_without_near_duplicates(tmp_path: Path, tiny_base: Path) -> None:
    path = training_file(
        tmp_path, tiny_base, streaming=True, near_duplicates="off", home=str(tmp_path / "home")
    )
    answer = check(path, "--json")
    assert answer.exit_code == 0, answer.output
    report = json.loads(answer.stdout)
    assert report["parts"] == {"train": 32, "validation": 4, "test": 4}
    assert any("near duplicates" in note for note in report["data"]["notes"])
    assert check(path, "--against", tmp_path / "rows.jsonl").exit_code == 2


def test_a_file_of_llamafactory_is_checked_with_what_it_leaves_out(
    tmp_path: Path, tiny_base: Path
) -> None:
    write(tmp_path / "a.json", rows(12))
    info = {"mine": {"file_name": "a.json"}}
    (tmp_path / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    theirs = {
        "model_name_or_path": str(tiny_base),
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "dataset": "mine",
        "dataset_dir": str(tmp_path),
        "template": "llama3",
        "cutoff_len": 128,
        "output_dir": str(tmp_path / "out"),
    }
    path = tmp_path / "lora_sft.yaml"
    path.write_text(yaml.safe_dump(theirs), encoding="utf-8")
    answer = check(path)
    assert answer.exit_code == 0, answer.output
    assert "data: 12 rows" in answer.stdout
    assert re.search("note: .*template", answer.stdout)


def test_every_stage_is_checked(tmp_path: Path, tiny_base: Path) -> None:
    write(tmp_path / "general.jsonl", rows(20))
    stages = [{"data": str(tmp_path / "general.jsonl")}, {"clean": True}]
    path = training_file(tmp_path, tiny_base, stages=stages)
    answer = check(path, "--json")
    assert answer.exit_code == 0, answer.output
    found = json.loads(answer.stdout)["stages"]
    assert [one["data"]["num_rows"] for one in found] == [20, 40]
    write(tmp_path / "general.jsonl", rows(1))
    assert check(path).exit_code == 1


def test_pairs_are_known_by_their_first_row(tmp_path: Path, tiny_base: Path) -> None:
    pairs = [{"instruction": f"Q{i}", "chosen": f"yes {i}", "rejected": "no"} for i in range(9)]
    answer = check(write(tmp_path / "p.jsonl", pairs), "--base", tiny_base)
    assert answer.exit_code == 0, answer.output
    assert read_question([str(tmp_path / "p.jsonl")], {})[0][0].objective == "dpo"


GOOD = [json.dumps(row) for row in rows(9)]

BAD_INPUT: dict[str, tuple[bytes, int, str]] = {
    "empty": (b"", 1, "is empty"),
    "one row": (GOOD[0].encode(), 1, "1 distinct usable row(s), but the split needs at least 3"),
    "all rows bad": (b'{"a": 1}\n' * 30, 1, "30 of 30 rows cannot be used (max_bad_rows=0)"),
    "wrong columns": (
        b'{"question": "Q", "answer": "A"}',
        1,
        "its columns (answer, question)",
    ),
    "mixed formats": (
        "\n".join([*GOOD, '{"conversations": [{"from": "human", "value": "Q"}]}']).encode(),
        1,
        "d.jsonl:10: a row in sharegpt form in a file of alpaca form",
    ),
    "BOM": (b"\xef\xbb\xbf" + "\n".join(GOOD).encode(), 0, "9 usable and distinct"),
    "GBK": (
        "\n".join([*GOOD, '{"instruction": "问", "output": "答案在这里"}']).encode("gbk"),
        0,
        "is in GB18030, not UTF-8: decoded",
    ),
    "neither": (b'{"instruction": "Q", "output": "\xff\xff"}', 1, "byte offset"),
}


@pytest.mark.parametrize("kind", BAD_INPUT)
def test_bad_input_is_named(tmp_path: Path, tiny_base: Path, kind: str) -> None:
    content, exit_code, message = BAD_INPUT[kind]
    file = tmp_path / "d.jsonl"
    file.write_bytes(content)
    answer = check(file, "--base", tiny_base)
    assert answer.exit_code == exit_code, answer.output
    assert message in answer.stdout, answer.stdout


def test_twenty_bad_rows_are_shown_and_all_are_counted(tmp_path: Path, tiny_base: Path) -> None:
    values = [*rows(9), *({"instruction": "Q", "output": ""} for _ in range(25))]
    answer = check(write(tmp_path / "d.jsonl", values), "--base", tiny_base, "--max-bad-rows", "25")
    assert answer.exit_code == 0, answer.output
    shown = re.findall(r"d\.jsonl:(\d+): 'output' is empty", answer.stdout)
    assert shown == [str(line) for line in range(10, 30)]
    assert "25 × 'output' is empty" in answer.stdout
    assert "… and 5 more" in answer.stdout


@pytest.mark.parametrize("megabytes", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_a_line_of_many_megabytes_is_one_long_row(tmp_path: Path, megabytes: int) -> None:
    """Cut like any other, cleaned and searched in seconds."""
    words = " ".join(f"word{i % 997}" for i in range(megabytes * 1_000_000 // 8))
    values = [*rows(9), {"instruction": "Q", "output": words}]
    file = write(tmp_path / "d.jsonl", values)
    assert file.stat().st_size > 0.9e6 * megabytes
    answer = check(file, "--clean", "all", "--redact", "--json")
    assert answer.exit_code == 0, answer.output
    report = json.loads(answer.stdout)
    assert report["data"]["num_truncated"] == 1
    assert report["data"]["tokens"]["max"] > 1e5 * megabytes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\ndata: x\nname: b", "'name' appears twice (line 3)"),
        ("name: a\ndata: x\nclaen: true", "did you mean 'clean'?"),
        ("name: a\ndata: x\nclean: [hmtl]", "clean"),
        ("name: a\ndata: absent.jsonl", "absent.jsonl"),
    ],
)
def test_mistakes_in_a_training_file_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    answer = check(path)
    assert answer.exit_code in (1, 2)
    assert message in answer.output
    assert "Traceback" not in answer.output


def test_questions_that_cannot_be_answered_exit_with_2(tmp_path: Path, tiny_base: Path) -> None:
    file = write(tmp_path / "d.jsonl", rows(9))
    bare = shutil.copytree(tiny_base, tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    for arguments, message in (
        ((file, "--base", bare), "bare has no chat template"),
        ((file, "--base", tmp_path / "absent"), "there is no folder"),
        ((file, "--base", tiny_base, "--max-length", "9999"), "context of 256"),
        ((file, "--base", tiny_base, "--clean", "hmtl"), "hmtl"),
        ((file, training_file(tmp_path, tiny_base)), "give it alone"),
        ((file, "--base", tiny_base, "--plot", tmp_path / "no" / "a.png"), "cannot write"),
    ):
        answer = check(*arguments)
        assert answer.exit_code == 2, answer.output
        assert message in answer.output


def test_the_preview_colours_what_is_learned_and_shows_special_tokens(tiny_base: Path) -> None:
    tokenizer = open_base(tiny_base).tokenizer
    turns = [{"role": "user", "content": "甄嬛?"}, {"role": "assistant", "content": "在。"}]
    rendered = ChatRenderer(tokenizer).render_training(turns)
    labels = [
        token if learned else IGNORED
        for token, learned in zip(rendered.input_ids, rendered.assistant_mask, strict=True)
    ]
    text = render_masked(Example(rendered.input_ids, labels), tokenizer, has_colour=True)
    assert text.plain == "<|bos|><|user|>甄嬛?<|end|><|assistant|>在。<|end|>"
    styled = [(text.plain[span.start : span.end], str(span.style)) for span in text.spans]
    assert styled == [
        ("<|bos|><|user|>", f"{READ} {SPECIAL}"),
        ("甄嬛?", READ),
        ("<|end|><|assistant|>", f"{READ} {SPECIAL}"),
        ("在。", LEARNED),
        ("<|end|>", f"{LEARNED} {SPECIAL}"),
    ]
