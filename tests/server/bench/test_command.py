"""``loraloop bench`` on a tiny base: every row runs, the last line is JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from artifacts.home import Home
from artifacts.init_base import SHAPES
from server.bench import command
from server.bench.cli import bench_app
from server.bench.machine import Ceilings
from server.bench.shape import cached_base

ROOT = Path(__file__).resolve().parents[3]
ENGINE_GROUPS = ("ttft", "streams", "adapters", "untouched", "rank256", "chat", "hotload", "zipf")


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LORALOOP_HOME", str(tmp_path))
    return cached_base("tiny-qwen2", Home.open(tmp_path))


def test_a_cached_base_is_made_once_and_never_ends_an_answer(tiny: Path) -> None:
    from artifacts.base import open_base

    stamp = (tiny / "config.json").stat().st_mtime_ns
    assert cached_base("tiny-qwen2", Home.open(tiny.parent.parent)) == tiny
    assert (tiny / "config.json").stat().st_mtime_ns == stamp
    base = open_base(tiny)
    assert base.config.eos_token_id is None
    assert base.config.architectures == ["Qwen2ForCausalLM"]
    assert (
        base.tokenizer.apply_chat_template(
            [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
        )
        == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert "tiny-qwen2" in SHAPES


def test_every_row_of_the_engine_runs(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "measure_in_child", lambda *_: Ceilings(3e10, 2e12))
    only = [part for group in ENGINE_GROUPS for part in ("--only", group)]
    done = CliRunner().invoke(
        bench_app, ["engine", "--model", str(tiny), "--quick", "--repeats", "1", *only]
    )
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout.splitlines()[-1])
    rows = {row["key"]: row for row in report["rows"]}
    expected = {"ttft", "streams_1", "streams_16", "eight_share", "shared_share", "untouched"}
    expected |= {"rank256_8_share", "chat", "hotload", "hotload_gap", "zipf"}
    assert expected <= rows.keys()
    assert all(row["value"] > 0 and row["samples"] for row in rows.values())
    assert rows["streams_8"]["floor"] > rows["streams_8"]["value"]
    assert rows["ttft"]["aim"] is None  # aims are for the 0.5B shape
    assert report["ceilings"] == {"read_bytes_s": 3e10, "matmul_flop_s": 2e12}


def test_the_children_measure_the_machine_and_the_memory(tiny: Path) -> None:
    def child(*arguments: str) -> dict[str, float]:
        run = [sys.executable, "-m", *arguments]
        done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return found

    ceilings = child("server.bench.machine", "--threads", "1", "--dtype", "float32")
    assert 1e8 < ceilings["read_bytes_s"] < 1e13
    assert 1e8 < ceilings["matmul_flop_s"] < 1e15
    memory = child("server.bench.memory", "--model", str(tiny), "--threads", "1")
    assert memory["peak"] >= memory["loaded"] > memory["kv"] > 0


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--only", "speed"], "--only 'speed' is unknown; choose of ttft"),
        (["--shape", "qwen9"], "shape 'qwen9' is unknown"),
        (["--shape", "tiny-qwen2", "--model", "x"], "--model and --shape"),
        (["--model", "/no/such/folder"], "/no/such/folder"),
    ],
)
def test_a_wrong_option_is_one_line(
    arguments: list[str], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORALOOP_HOME", str(tmp_path))
    done = CliRunner().invoke(bench_app, ["engine", *arguments])
    assert done.exit_code == 2
    assert reason in done.stderr
    assert "Traceback" not in done.output
