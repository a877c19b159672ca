"""What a run says and keeps of the doctor's work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from artifacts.database import Database
from artifacts.home import Home
from artifacts.registry import Registry
from tests.training.conftest import Recorder, rows
from training.config import parse_config
from training.doctor.edits import read_changes
from training.events import ProgressBar
from training.run import train_adapter
from training.signals import StopRequest


def test_a_run_tells_and_keeps_what_was_found_and_changed(settings: dict[str, Any]) -> None:
    values = [*rows(40), rows(1)[0], {"instruction": "Ring?", "output": "<b>Ring</b> 13800138000"}]
    Path(settings["data"][0]).write_text(json.dumps(values), encoding="utf-8")
    recorder = Recorder()
    train_adapter(parse_config({**settings, "clean": True}), recorder, StopRequest())
    (event,) = recorder.of("data_checked")
    assert recorder.events[0] is event
    assert event["num_duplicates"] == event["num_with_personal_data"] == event["num_cleaned"] == 1
    assert event["parts"] == {"train": 33, "validation": 4, "test": 4}

    folder = Path(settings["output_dir"])
    text = (folder / "data_report.json").read_text(encoding="utf-8")
    assert json.loads(text)["data"]["num_duplicates"] == 1
    assert "13800138000" not in text
    changes = read_changes(folder / "data_changes.jsonl")
    assert [(c.row, c.place, c.rule) for c in changes] == [(42, "messages[1].content", "html")]

    home = Home.open(settings["home"])
    (version,) = Registry(home, Database(home.database_url)).list()
    totals = {key: value for key, value in event.items() if key != "event"}
    assert version.manifest.settings["data_report"] == totals


def test_the_bar_says_it_in_a_few_lines() -> None:
    console = Console(record=True, width=200)
    bar = ProgressBar(console)
    counts = {"num_rows": 9, "num_tokens": 1234, "num_bad": 0, "num_duplicates": 2,
              "num_near_duplicates": 1, "num_overlapping": 0, "num_too_long": 0,
              "num_truncated": 3, "num_with_personal_data": 4, "num_cleaned": 0}  # fmt: skip
    bar.emit({"event": "data_checked", **counts, "languages": {"zh": 8, "en": 1}, "parts": {}})
    bar.close()
    said = [line.rstrip() for line in console.export_text().splitlines()]
    begin = said.index("data: 9 rows, 1,234 tokens (8 zh, 1 en)")
    assert said[begin : begin + 3] == [
        "data: 9 rows, 1,234 tokens (8 zh, 1 en)",
        "of these: 2 duplicates, 1 near duplicates, 3 truncated",
        "rows 4 with personal data",
    ]
