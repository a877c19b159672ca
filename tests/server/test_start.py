"""What stops a start, in one line and before anything heavy is imported."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from artifacts.errors import Conflict
from server.home_lock import HomeLock
from server.main import CannotStart, bind, parse_folder

PROGRAM = """
import sys, typer
from server.main import serve
try:
    typer.run(serve)
finally:
    print("torch" in sys.modules, "transformers" in sys.modules)
"""


def start(tmp_path: Path, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("LORALOOP_")}
    env = {**kept, "LORALOOP_HOME": str(tmp_path), **variables}
    command = [sys.executable, "-c", PROGRAM, *options]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)


def refusal(finished: subprocess.CompletedProcess[str]) -> str:
    """The one line on stderr; nothing heavy may have been imported for it."""
    assert finished.returncode == 2
    assert finished.stdout.split() == ["False", "False"]
    lines = finished.stderr.strip().splitlines()
    assert len(lines) == 1, finished.stderr
    assert lines[0].startswith("loraloop serve: ")
    return lines[0]


def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        message = refusal(start(tmp_path, "--port", str(port)))
    assert f"port {port}" in message
    assert "--port" in message


@pytest.mark.parametrize(
    ("options", "variables", "parts"),
    [
        ((), {"LORALOOP_PROT": "1"}, ("LORALOOP_PROT", "'1'", "LORALOOP_PORT?")),
        ((), {"LORALOOP_MAX_RANK": "many"}, ("LORALOOP_MAX_RANK", "'many'")),
        (("--dtype", "int3"), {}, ("--dtype", "'int3'", "bfloat16")),
        (("--port", "99999"), {}, ("--port", "99999")),
        (("--adapter", "shop"), {}, ("'shop'", "name=path")),
    ],
)
def test_a_bad_setting(
    tmp_path: Path, options: tuple[str, ...], variables: dict[str, str], parts: tuple[str, ...]
) -> None:
    message = refusal(start(tmp_path, *options, **variables))
    for part in parts:
        assert part in message


def test_a_host_that_is_not_ours() -> None:
    with pytest.raises(CannotStart, match=r"192\.0\.2\.1"):
        bind("192.0.2.1", 0)


def test_a_bound_port_belongs_to_us_before_it_listens() -> None:
    ours = bind("127.0.0.1", 0)
    ours.listen()
    with pytest.raises(CannotStart, match="in use"):
        bind("127.0.0.1", ours.getsockname()[1])
    ours.close()


def test_adapter_options(tmp_path: Path) -> None:
    assert parse_folder(f"shop={tmp_path}") == ("shop", tmp_path)
    for text in ("shop=", "=x", "shop=/nowhere/at/all", "Shop!=" + str(tmp_path)):
        with pytest.raises(Exception, match=r"name|folder"):
            parse_folder(text)


def test_a_home_serves_one_server_at_a_time(tmp_path: Path) -> None:
    with HomeLock(tmp_path), pytest.raises(Conflict, match=str(os.getpid())), HomeLock(tmp_path):
        pass
    with HomeLock(tmp_path):
        pass
