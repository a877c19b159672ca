"""The training process as the server sees it: lines on stdout, signals, exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]


def start(folder: Path, settings: dict[str, Any], *arguments: str) -> subprocess.Popen[str]:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return subprocess.Popen(
        [sys.executable, "-m", "training", str(path), *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_sigterm_ends_the_step_in_a_checkpoint(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Every stdout line is an event; a signal in the middle of training ends with code 3."""
    process = start(tmp_path, settings, "max_steps=100000", "eval_steps=null", "--progress", "json")
    assert process.stdout is not None
    seen = [json.loads(process.stdout.readline())]
    while seen[-1]["event"] != "progress":
        seen.append(json.loads(process.stdout.readline()))
    (started,) = [event for event in seen if event["event"] == "started"]
    assert started["pid"] == process.pid
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 3, err
    last = [json.loads(line) for line in out.splitlines()][-1]
    assert last["event"] == "interrupted"
    step = last["step"]
    assert (Path(settings["output_dir"]) / f"checkpoint-{step}" / "trainer_state.json").is_file()
    assert "Traceback" not in err


def test_a_failure_is_one_event_with_its_rows(tmp_path: Path, settings: dict[str, Any]) -> None:
    Path(settings["data"][0]).write_text('{"instruction": "Q"}\n', encoding="utf-8")
    process = start(tmp_path, settings, "--progress", "json")
    out, err = process.communicate(timeout=60)
    (event,) = [json.loads(line) for line in out.splitlines()]
    assert (process.returncode, event["event"], event["code"]) == (1, "failed", "invalid_data")
    row = {
        "file": settings["data"][0],
        "line": 1,
        "reason": "'output' is missing; the row has instruction",
    }
    assert event["rows"] == [row]
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("argument", "message"), [("rnak=3", "did you mean 'rank'?"), ("base=/absent", "no folder")]
)
def test_a_wrong_key_and_a_missing_base_are_told_in_words(
    tmp_path: Path, settings: dict[str, Any], argument: str, message: str
) -> None:
    process = start(tmp_path, settings, argument)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert "failed (invalid_config)" in err
    assert message in err
