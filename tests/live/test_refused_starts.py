"""What stops a start is said in one line, with the remedy: no traceback, exit code 2."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TinyBase
from tests.live.zygote import REPOSITORY, Forked, Zygote

WEIGHTS = "model-00001-of-00001.safetensors"
INDEX = "model.safetensors.index.json"
Damage = Callable[[Path], object]


def refusal(server: Forked) -> str:
    assert server.wait() == 2, server.said
    progress = ("INFO: ", "adapter: ")
    lines = [line for line in server.said.splitlines() if not line.startswith(progress)]
    assert len(lines) == 1, server.said
    assert lines[0].startswith("loraloop serve: ")
    return lines[0]


def setting(**values: Any) -> Damage:
    def change(base: Path) -> None:
        path = base / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def text(file: str, content: str) -> Damage:
    return lambda base: (base / file).write_text(content)


def without(*files: str) -> Damage:
    def change(base: Path) -> None:
        for file in files:
            (base / file).unlink()

    return change


def cut(num_bytes: int) -> Damage:
    return lambda base: os.truncate(base / WEIGHTS, num_bytes)


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (text("config.json", "{oops"), ("config.json", "not readable JSON")),
        (text("config.json", "[]"), ("config.json", "not a JSON object")),
        (setting(model_type="gpt2"), ("'gpt2'", "choose a base of")),
        (setting(hidden_size="many"), ("config.json", "hidden_size", "'many'", "copy")),
        (setting(num_attention_heads=0), ("config.json", "copy")),
        (setting(dtype="int8"), ("int8", "--dtype")),
        (setting(dtype="zzz"), ("config.json", "zzz", "copy")),
        (setting(num_hidden_layers=9), ("lack", "model.layers.3", "copy")),
        (cut(100_000), (WEIGHTS, "outside the file", "copy")),
        (cut(100), (WEIGHTS, "header claims", "copy")),
        (cut(0), (WEIGHTS, "copy")),
        (without(WEIGHTS), (WEIGHTS, "missing", "copy")),
        (text(INDEX, "{}"), (INDEX, "weight_map", "copy")),
        (text(INDEX, '{"weight_map": [3]}'), (INDEX, "weight_map", "copy")),
        (without("tokenizer.json", "tokenizer_config.json"), ("tokenizer", "copy")),
        (text("tokenizer.json", "{}"), ("tokenizer", "copy")),
        (text("generation_config.json", '{"eos_token_id": "x"}'), ("eos_token_id", "'x'", "give")),
        (lambda base: shutil.rmtree(base), ("no folder", "give")),
    ],
)
def test_an_unreadable_base(
    zygote: Zygote, tiny_base: TinyBase, tmp_path: Path, damage: Damage, parts: tuple[str, ...]
) -> None:
    base = Path(shutil.copytree(tiny_base("llama"), tmp_path / "base"))
    damage(base)
    message = refusal(zygote.start(tmp_path / "home", "--model", str(base)))
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (lambda home: home.write_text("I am a file"), ("LORALOOP_HOME", "Not a directory")),
        (
            text("registry.db", "not a database, but longer " * 99),
            ("registry.db", "damaged", "copy"),
        ),
        (lambda home: (home / "registry.db").mkdir(), ("registry.db", "cannot be used")),
        (lambda home: (home / "server.lock").mkdir(), ("server.lock", "Is a directory")),
    ],
)
def test_an_unusable_home(
    zygote: Zygote, tiny_base: TinyBase, tmp_path: Path, damage: Damage, parts: tuple[str, ...]
) -> None:
    home = tmp_path / "home"
    if "LORALOOP_HOME" not in parts:
        home.mkdir()
    damage(home)
    message = refusal(zygote.start(home, "--model", str(tiny_base("llama"))))
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("registry.db", ("'registry.db'", "database URL")),
        ("postgresql+psycopg://user@host:port/name", ("host:port", "database URL")),
        ("sqlite:////nowhere/at/all.db", ("/nowhere/at/all.db", "cannot be used")),
    ],
)
def test_a_bad_database_url(
    zygote: Zygote, tmp_path: Path, url: str, parts: tuple[str, ...]
) -> None:
    message = refusal(zygote.start(tmp_path / "home", LORALOOP_DATABASE_URL=url))
    for part in parts:
        assert part in message


def test_a_bad_adapter_is_refused_before_the_base_is_loaded(
    zygote: Zygote, tiny_base: TinyBase, tmp_path: Path
) -> None:
    base = tiny_base("llama")
    server = zygote.start(tmp_path / "home", "--model", str(base), "--adapter", f"shop={base}")
    message = refusal(server)
    assert str(base) in message
    assert "adapter_config.json" in message
    assert "kernels" not in server.said, "the base was loaded first"


def test_an_adapter_that_does_not_fit_in_memory_stops_the_start_in_one_line(
    zygote: Zygote, tiny_base: TinyBase, tmp_path: Path, peft_adapter: Callable[[Path], Path]
) -> None:
    base = tiny_base("llama")
    shop = f"shop={peft_adapter(base)}"
    home = tmp_path / "home"
    options = ("--model", str(base), "--adapter", shop)
    message = refusal(zygote.start(home, *options, LORALOOP_MAX_ADAPTER_BYTES="1000"))
    assert "shop@1" in message
    assert "LORALOOP_MAX_ADAPTER_BYTES" in message


def test_a_second_server_names_the_first_and_a_killed_one_frees_the_home(
    zygote: Zygote, tiny_base: TinyBase, tmp_path: Path
) -> None:
    home, base = tmp_path / "home", str(tiny_base("llama"))
    first = zygote.start(home, "--model", base)
    first.wait_ready()
    message = refusal(zygote.start(home, "--model", base))
    assert f"process {first.pid}" in message
    assert "LORALOOP_HOME" in message
    first.signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    second = zygote.start(home, "--model", base)
    second.wait_ready()
    second.kill()


@pytest.mark.skipif(
    subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True).returncode != 0,
    reason="needs a mount of its own",
)
def test_a_read_only_home(tmp_path: Path) -> None:
    home = tmp_path / "home"
    for folder in ("adapters", "files", "jobs", "exports", "tmp"):
        (home / folder).mkdir(parents=True)
    script = (
        f"mount --bind {home} {home} && mount -o remount,bind,ro {home} && "
        f"LORALOOP_HOME={home} exec {sys.executable} loraloop.py serve --port 0"
    )
    command = ["unshare", "-rm", "sh", "-c", script]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    [line] = done.stderr.strip().splitlines()
    assert line.startswith("loraloop serve: ")
    assert str(home) in line
    assert "Read-only file system" in line
