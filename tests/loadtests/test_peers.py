"""Comparisons: started servers, turns, ratios, and what `make bench` puts together."""

from __future__ import annotations

import io
import json
import queue
import subprocess
import sys
import threading
import time
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from loadtests import contenders, openvino_server, peers, whole
from loadtests.client import get_json, parse, parse_url, post_json, record
from loadtests.measure import Load, Sample
from loadtests.servers import ROOT, CannotStart, Spec, running
from tests.loadtests.fake_completions import Manners, fake_completions

TINY_SERVER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b'{"data": []}')
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
AIM = {"limit": 20.0, "is_upper": False}


def sample(value: float) -> Sample:
    return Sample(value, (1.0,), (8,), (8,), is_counted=True)


def test_ratios_are_taken_round_by_round() -> None:
    """The second round is twice as slow for both: that is the machine, not a server."""
    load, first = Load("s", "s", 4, 8, 8), Load("ttft", "t", 1, 8, 8, is_first_token=True)
    ours, theirs = [sample(100), sample(50), sample(90)], [sample(50), sample(25), sample(60)]
    assert peers.paired_ratio(load, ours, theirs) == 2.0
    assert peers.paired_ratio(first, theirs, ours) == 2.0  # half the time is twice as good


def test_servers_that_run_already_are_compared_in_turns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slow, fast = Manners(first_token_s=0.06), Manners(first_token_s=0.01)
    written = tmp_path / "report.json"
    short = ["--streams", "2", "--new-tokens", "3", "--prompt-tokens", "24", "--rounds", "2"]
    with fake_completions(fast) as a, fake_completions(slow) as b:
        urls = ["--url", f"fast={a}", "--url", f"slow={b}", "--long-prompt", "32"]
        chosen = ["--model", str(tmp_path), "--peers", "", "--json", str(written)]
        assert peers.main([*chosen, *urls, *short]) == 0
    report = json.loads(written.read_text(encoding="utf-8"))
    assert report == json.loads(capsys.readouterr().out.splitlines()[-1])
    first, streams = report["rows"]
    assert first["ratios"]["slow"] > 2
    assert streams["servers"]["fast"]["new_tokens"] == [3, 3]
    assert report["peak_mib"] == {"fast": None, "slow": None}


def test_an_unknown_peer_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert peers.main(["--peers", "loraloop,vllm"]) == 2
    assert "vllm: known are loraloop" in capsys.readouterr().err


def test_a_peer_that_is_not_installed_says_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = {"openvino": (tmp_path / "python", ("openvino",))}
    monkeypatch.setattr(contenders, "PACKAGES", missing)
    with pytest.raises(CannotStart, match="make bench-peers"):
        contenders.spec_of("openvino", tmp_path, 2, tmp_path)


def test_a_started_server_can_be_paused_and_is_ended() -> None:
    spec = Spec("tiny", [sys.executable, "-c", TINY_SERVER, "{port}"])
    with running(spec) as server:
        endpoint = parse_url(server.url)
        assert get_json(endpoint, "/models") == {"data": []}
        assert (server.peak_mib() or 0) > 1
        server.pause()
        deadline = time.monotonic() + 5
        while state_of(server.process) != "T" and time.monotonic() < deadline:
            time.sleep(0.01)
        assert state_of(server.process) == "T"
        server.resume()
        assert get_json(endpoint, "/models") == {"data": []}
        server.pause()  # ended even while paused
    assert server.process is not None
    assert server.process.poll() is not None


OWNER = """
import sys, time
from loadtests.servers import Spec, end_on_sigterm, running
end_on_sigterm()
with running(Spec("tiny", [sys.executable, "-c", sys.argv[1], "{port}"])) as server:
    server.pause()
    print(server.process.pid, flush=True)
    time.sleep(60)
"""


def test_servers_do_not_outlive_a_comparison_that_is_told_to_end() -> None:
    command = [sys.executable, "-c", OWNER, TINY_SERVER]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        owner.terminate()
        assert owner.wait(20) == 143
    assert not Path(f"/proc/{pid}").exists()


def state_of(process: Any) -> str:
    return (
        Path(f"/proc/{process.pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()[0]
    )


def test_a_server_that_ends_at_once_shows_the_end_of_its_log() -> None:
    spec = Spec("broken", [sys.executable, "-c", "print('no such model'); raise SystemExit(3)"])
    with pytest.raises(CannotStart, match=r"broken ended with 3:\nno such model"), running(spec):
        pass


def test_an_http_row_takes_floor_and_aim_of_its_twin_in_process() -> None:
    engine = [{"key": "streams_1", "floor": 30.0, "aim": AIM}]
    row = {"key": "streams_1", "figure": "1 stream, whole requests", "unit": "tok/s"}
    made = whole.as_row(row | {"value": 15.0, "spread": [14.0, 16.0]}, engine)
    assert (made["figure"], made["of_floor"], made["verdict"]) == (
        "1 stream, over HTTP", 0.5, "missed",
    )  # fmt: skip
    alone = whole.as_row(row | {"key": "other", "value": 1.0}, engine)
    assert (alone["floor"], alone["verdict"]) == (None, None)


def test_the_one_table_shows_every_row_with_its_verdict() -> None:
    row = {
        "key": "k", "figure": "a figure", "unit": "tok/s", "value": 25.0, "spread": [20.0, 30.0],
        "floor": 50.0, "of_floor": 0.5, "aim": AIM, "verdict": "met",
    }  # fmt: skip
    report = {"commit": "abc", "rows": [row], "engine": {"base": "b", "dtype": "bfloat16"}}
    out = io.StringIO()
    Console(file=out, width=120).print(whole.table(report))
    for cell in ("a figure", "25.0 tok/s", "20.0-30.0", "50 %", ">= 20", "met", "commit abc"):
        assert cell in out.getvalue()


class FakePipeline:
    """Two steps of two tokens each."""

    def encode(self, text: str) -> list[int]:
        return list(range(len(text.split())))

    def decode(self, ids: list[int]) -> str:
        return "".join(f" {i}" for i in ids)

    def submit(self, ids: list[int], num_new: int) -> queue.SimpleQueue[Any]:
        tokens: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for item in ([1, 2], [3, 4], None):
            tokens.put(item)
        return tokens


def test_the_openvino_shim_speaks_the_protocol_and_counts_honestly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(openvino_server.Handler, "pipeline", FakePipeline(), raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), openvino_server.Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        endpoint = parse_url(f"http://127.0.0.1:{server.server_port}")
        body = {"messages": [{"role": "user", "content": "one two three"}], "max_tokens": 4}
        whole_answer = post_json(endpoint, "/chat/completions", body)
        connection = endpoint.connect()
        streamed = parse(record(connection, endpoint, body | {"stream": True}))
        connection.close()
    finally:
        server.shutdown()
        server.server_close()
    assert whole_answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 4}
    assert (streamed.text, streamed.num_tokens) == (" 1 2 3 4", 4)
