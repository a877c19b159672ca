"""The demo's own judgement: it must notice when a claim does not hold. The story itself is
``make demo``; the test marked slow plays it."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from demo import claims
from demo.chat import Stream, side_by_side
from demo.dataset import EXAMPLE, adapter_name, look_at
from demo.jobs import Trained
from demo.processes import DemoFailed, Process
from demo.report import arms_table, print_report, print_verdict
from demo.story import FIRST, THIRD, run_demo

ROOT = Path(__file__).resolve().parent.parent
VERSION = Trained(
    id="tea@3",
    fine_tuned_model="ft:x",
    base_loss=3.0,
    adapter_loss=2.0,
    base_perplexity=20.1,
    adapter_perplexity=7.4,
    load_s=0.02,
    finished_at=1_000.0,
    duration_s=30.0,
)
WEIGHTS = {"tea@1": 70.0, "tea@2": 30.0}


def row(requests: int, errors: int = 0) -> dict[str, Any]:
    times = {"p50": 10.0, "p90": 20.0, "p99": 30.0}
    return {
        "requests": requests,
        "errors": errors,
        "tokens_per_s": 120.0,
        "ttft_ms": times,
        "itl_ms": times,
    }


def load(first: int = 70, second: int = 30, errors: int = 0) -> dict[str, Any]:
    memory = {"rss_peak_bytes": 5 << 20, "kv_bytes": 1 << 20, "adapters": {"tea@1": 1 << 20}}
    return {
        "first_s": 990.0,
        "last_s": 1_010.0,
        "total": row(first + second, errors),
        "versions": {"tea@1": row(first), "tea@2": row(second, errors)},
        "server": {"adapters": {"tea@1": row(first)}, "memory": memory},
    }


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        (claims.learned(VERSION), claims.learned(replace(VERSION, adapter_loss=3.0))),
        (claims.differs("a", "b"), claims.differs("a", "a")),
        (claims.differs("a", "b"), claims.differs("a", " ")),
        (claims.nothing_failed(load()), claims.nothing_failed(load(errors=1))),
        (claims.nothing_failed(load()), claims.nothing_failed(load(0, 0))),
        (claims.split_holds(load(), WEIGHTS), claims.split_holds(load(30, 70), WEIGHTS)),
        (
            claims.loaded_under_load(load(), VERSION),
            claims.loaded_under_load(load(), replace(VERSION, finished_at=1_011.0)),
        ),
        (
            claims.answered_by("tea@1", "tea@3", "tea@1", "tea@3"),
            claims.answered_by("tea@1", "tea@1", "tea@1", "tea@3"),
        ),
    ],
)
def test_each_claim_can_hold_and_can_fail(good: claims.Claim, bad: claims.Claim) -> None:
    assert good.holds
    assert not bad.holds
    assert good.evidence


def test_an_answer_from_outside_the_experiment_breaks_the_split() -> None:
    stray = load()
    stray["versions"]["tea@3"] = row(1)
    assert not claims.split_holds(stray, WEIGHTS).holds


def test_the_verdict_names_what_failed() -> None:
    page = io.StringIO()
    found = [claims.nothing_failed(load()), claims.nothing_failed(load(errors=2))]
    assert not print_verdict(Console(file=page, width=100), found)
    assert "FAILS  no request failed" in page.getvalue()
    assert "2 of 100 failed" in page.getvalue()
    assert print_verdict(Console(file=page), found[:1])


def test_the_report_shows_every_figure_and_bears_missing_ones() -> None:
    page = io.StringIO()
    console = Console(file=page, width=140)
    print_report(console, load(), WEIGHTS, VERSION)
    for part in ("tea@2", "70 %", "20.0", "5 MiB", "20 ms", "Failed requests: 0"):
        assert part in page.getvalue()
    console.print(arms_table({"versions": {}, "server": None}, WEIGHTS))


def test_the_example_data_gives_questions_and_a_name() -> None:
    dataset = look_at(None)
    assert dataset.path == EXAMPLE
    assert dataset.name == "lantern-tea"
    assert dataset.num_rows == 288
    assert 20 <= len(dataset.questions) <= 40
    asked = EXAMPLE.read_text(encoding="utf-8")
    assert all(question in asked for question in dataset.shown)


@pytest.mark.parametrize(
    "text",
    [
        json.dumps([{"instruction": "Who?", "input": "", "output": "Me."}]),
        json.dumps([{"conversations": [{"from": "human", "value": "Who?"}]}]),
        '{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "Who?"}]}',
    ],
)
def test_questions_come_from_every_file_form(text: str, tmp_path: Path) -> None:
    path = tmp_path / "My Data.json"
    path.write_text(text, encoding="utf-8")
    assert look_at(path).questions == look_at(path).shown == ("Who?",)
    assert look_at(path).name == "my-data"


@pytest.mark.parametrize("content", [b"{nonsense", b"[]", b"\xff\xfe", None])
def test_a_file_that_cannot_be_used_ends_the_demo_at_once(
    content: bytes | None, tmp_path: Path
) -> None:
    path = tmp_path / "rows.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DemoFailed, match=r"rows\.json"):
        look_at(path)
    assert run_demo(path, keep=False) == 1


def test_names_are_made_fit() -> None:
    assert adapter_name(Path("/x/甄嬛 Data_1.json")) == "data_1"
    assert adapter_name(Path("甄嬛.json")) == "mine"


def test_a_large_file_is_capped_and_a_small_one_is_not() -> None:
    assert FIRST.settings(3_729)["max_steps"] == FIRST.max_steps
    assert FIRST.is_capped(3_729)
    assert THIRD.num_steps(1) == 1
    assert not THIRD.is_capped(100)


def test_a_process_is_stopped_even_if_the_story_breaks(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]
    process = Process("sleeper", command, tmp_path / "log", {})
    with pytest.raises(RuntimeError), process:
        raise RuntimeError
    assert process.exit_code is not None


def test_answers_without_spaces_are_shown_whole() -> None:
    page = io.StringIO()
    streams = [Stream("m", text="您的订单正在配送" * 12, version="tea@1")] * 2
    Console(file=page, width=110).print(side_by_side(streams, "到哪里了？"))
    assert page.getvalue().count("配") == 24
    assert "…" not in page.getvalue()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_story() -> None:
    command = [sys.executable, "-m", "loraloop", "demo"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
