"""Each scenario as users run it: a Locust process against a fake server."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.loadtests.fake_server import TOKENS, Behaviour, fake_server

ROOT = Path(__file__).resolve().parent.parent.parent


def run(
    scenario: str, behaviour: Behaviour, tmp_path: Path, *options: str, seconds: float = 2
) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """Locust's process and the summary that it wrote."""
    summary = tmp_path / "summary.json"
    with fake_server(behaviour) as url:
        command = [sys.executable, "-m", "locust", "-f", f"loadtests/{scenario}.py"]
        command += ["--host", url, "--headless", "--users", "8", "--spawn-rate", "8"]
        command += ["--run-time", f"{seconds}s", "--stop-timeout", "5"]
        command += ["--summary", str(summary), "--html", str(tmp_path / "report.html"), *options]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    written = json.loads(summary.read_text(encoding="utf-8")) if summary.exists() else {}
    return done, written


def test_chat_reports_ttft_and_itl_and_the_servers_own_figures(tmp_path: Path) -> None:
    behaviour = Behaviour(first_token_s=0.1, gap_s=0.02)
    done, summary = run("chat", behaviour, tmp_path, "--model", "tea@1", "--api-key", "k")
    assert done.returncode == 0, done.stderr
    row = summary["versions"]["tea@1"]
    assert row["requests"] > 8
    assert row["errors"] == 0
    assert row["tokens"] == row["requests"] * len(TOKENS)
    assert 120 <= row["ttft_ms"]["p50"] < 500  # the role's event does not count as a token
    assert 15 <= row["itl_ms"]["p50"] < 100
    assert "77.7" in done.stdout  # the server's P90
    assert "321 MiB resident" in done.stdout
    report = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "TTFT" in report
    assert "ITL" in report


def test_chat_against_a_server_without_admin_routes(tmp_path: Path) -> None:
    done, summary = run("chat", Behaviour(has_admin=False), tmp_path, seconds=1)
    assert done.returncode == 0, done.stderr
    assert summary["server"] is None
    assert "gave no /admin/stats" in done.stdout


@pytest.mark.parametrize(
    ("behaviour", "options", "sentence"),
    [
        (Behaviour(fail_every=5), (), "failed requests, 0 allowed"),
        (Behaviour(mixes_versions=True), (), "failed requests, 0 allowed"),
        (Behaviour(cuts_stream=True), (), "failed requests, 0 allowed"),
        (Behaviour(first_token_s=0.2), ("--max-ttft-p90-ms", "50"), "TTFT P90 is"),
    ],
)
def test_failures_and_broken_limits_end_in_exit_code_1(
    behaviour: Behaviour, options: tuple[str, ...], sentence: str, tmp_path: Path
) -> None:
    done, summary = run("chat", behaviour, tmp_path, *options, seconds=1)
    assert done.returncode == 1
    assert sentence in " ".join(summary["problems"])


def test_nothing_listening_is_a_failure(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "locust", "-f", "loadtests/chat.py", "--headless"]
    command += ["--host", "http://127.0.0.1:9", "--model", "x", "--users", "1", "--run-time", "1s"]
    command += ["--pause", "0.2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1


def test_mixed_takes_turns_over_every_listed_model(tmp_path: Path) -> None:
    done, summary = run("mixed", Behaviour(), tmp_path, seconds=1)
    assert done.returncode == 0, done.stderr
    counts = [row["requests"] for row in summary["versions"].values()]
    assert set(summary["versions"]) == {"tea@1", "tea@2"}
    assert max(counts) - min(counts) <= 1


def test_ab_follows_the_weights_with_a_new_user_each_time(tmp_path: Path) -> None:
    behaviour = Behaviour()
    done, _ = run("ab", behaviour, tmp_path, "--model", "tea")
    assert done.returncode == 0, done.stdout
    chats = [body for method, path, body in behaviour.calls if path.endswith("completions")]
    assert len({body["user"] for body in chats}) == len(chats)
    assert {body["model"] for body in chats} == {"tea"}


def test_ab_notices_a_split_that_ignores_the_weights(tmp_path: Path) -> None:
    behaviour = Behaviour(served_weights={"tea@1": 30, "tea@2": 70})
    done, summary = run("ab", behaviour, tmp_path, "--model", "tea")
    assert done.returncode == 1
    assert "the split is off" in " ".join(summary["problems"])


def test_hotswap_loads_and_flips_while_users_stream(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("hotswap, please\n", encoding="utf-8")
    behaviour = Behaviour()
    swap = ("--swap", "tea@1,tea@2", "--swap-every", "0.2", "--prompts", str(prompts))
    done, summary = run("hotswap", behaviour, tmp_path, *swap, "--admin-key", "a", seconds=3)
    assert done.returncode == 0, done.stderr
    paths = [path for method, path, _ in behaviour.calls]
    assert paths.count("/admin/adapters/load") >= 2
    assert paths.count("/admin/adapters/tea/aliases/champion") >= 2
    assert set(summary["versions"]) == {"tea@1", "tea@2"}


def test_a_signal_ends_a_run_early_with_all_its_checks(tmp_path: Path) -> None:
    behaviour, summary = Behaviour(served_weights={"tea@2": 1}), tmp_path / "summary.json"
    with fake_server(behaviour) as url:
        command = [sys.executable, "-m", "locust", "-f", "loadtests/ab.py", "--headless"]
        command += ["--host", url, "--model", "tea", "--users", "2", "--stop-timeout", "5"]
        command += ["--summary", str(summary)]
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
        try:
            wait_until(lambda: len(behaviour.calls) > 20)
            process.send_signal(signal.SIGUSR1)
            assert process.wait(20) == 1
        finally:
            process.kill()
    assert "the split is off" in summary.read_text(encoding="utf-8")


def test_the_web_interface_offers_our_options_but_never_a_key() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "locust", "-f", "loadtests/chat.py", "--web-port", str(port)]
    env = os.environ | {"OPENAI_API_KEY": "sk-one", "ADMIN_KEY": "sk-two"}
    process = subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.DEVNULL)
    try:
        page = ""

        def has_page() -> bool:
            nonlocal page
            try:
                page = requests.get(f"http://127.0.0.1:{port}/", timeout=5).text
            except requests.ConnectionError:
                return False
            return True

        wait_until(has_page, seconds=30)
    finally:
        process.terminate()
        process.wait(20)
    assert "max_tokens" in page
    assert "sk-" not in page


def wait_until(is_true: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
