"""A whole run over mixed, windowed and streamed rows: the same adapter whichever way they come."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from artifacts.heldout import read_heldout, remove_heldout
from artifacts.home import Home
from tests.training.conftest import rows
from tests.training.test_run import interrupt, train, versions


def test_streamed_interrupted_and_resumed_is_the_run_through_memory(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    classes = tmp_path / "classes.csv"
    labels = ["no", "yes", "yes", "yes"]
    lines = [f"Is {i} more than {i % 7}?,{labels[i % 4]}" for i in range(24)]
    classes.write_text("\n".join(["text,category", *lines]), encoding="utf-8")
    chats = tmp_path / "chats.jsonl"
    chats.write_text("\n".join(json.dumps(row) for row in rows(16)), encoding="utf-8")
    columns = {"prompt": "text", "response": "category"}
    mixed: dict[str, Any] = {
        **settings,
        "data": [{"path": str(classes), "columns": columns, "weight": 0.5}, str(chats)],
        "sampling": "inverse_frequency",
        "max_length": 40,
        "long_rows": "window",
        "window_overlap": 8,
        "near_duplicates": "off",
        "max_steps": 8,
        "eval_steps": 2,
    }
    started = train(mixed).of("started")[0]
    assert started["num_windowed"] == 16
    home = Home.open(settings["home"])
    content_hash = versions(mixed)[0].content_hash
    kept = read_heldout(home, content_hash)
    remove_heldout(home, content_hash)
    streamed = {**mixed, "streaming": True, "output_dir": str(tmp_path / "streamed")}
    interrupt(streamed, 4)
    again = train(streamed, resume=True).of("started")[0]
    assert again["resumed_from"] == "checkpoint-5"  # told of step 4, it stopped behind the next
    first, second = versions(mixed)
    assert first.content_hash == second.content_hash
    assert first.manifest.data_hash == second.manifest.data_hash
    assert read_heldout(home, content_hash) == kept != []
    plain = train({**mixed, "sampling": "natural", "output_dir": str(tmp_path / "plain")})
    assert plain.of("published")[0]["content_hash"] != first.content_hash
