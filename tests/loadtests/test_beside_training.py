"""The measurement beside training, against a server whose times and steps are known."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from typing import Any

import pytest

from loadtests.beside_training import main
from loadtests.measure import Target, open_target
from loadtests.steady import Heard, Traffic, hear
from tests.loadtests.fake_completions import Handler, Manners, fake_completions

SLOW_S, FAST_S = 0.06, 0.02
STEPS_PER_S = 20.0


@dataclass
class Trainer:
    """One job: while it works, first tokens take ``SLOW_S``."""

    manners: Manners
    fails: bool = False
    asked: list[str] = field(default_factory=list)
    order: dict[str, Any] = field(default_factory=dict)
    steps: float = 0.0
    working_since: float | None = None

    def act(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        verb = path.rsplit("/", 1)[-1].partition("?")[0]
        self.asked.append(verb)
        match verb:
            case "files":
                return {"id": "file-1"}
            case "jobs":
                self.order = body
                self._work()
            case "resume":
                self._work()
            case "pause" | "cancel":
                self._rest()
            case "events":
                return {"data": [{"type": "message", "message": "Training stands aside"}]}
            case "stats":
                return {
                    "adapters": {"base": {"ttft_ms": {"p90": 1e3 * self.manners.first_token_s}}},
                    "training": {"paused_s": 1.5},
                }
        return self._job()

    def _job(self) -> dict[str, Any]:
        working_s = 0.0 if self.working_since is None else time.monotonic() - self.working_since
        step = int(self.steps + working_s * STEPS_PER_S)
        status = "failed" if self.fails else "running"
        return {
            "id": "job-1",
            "status": status,
            "error": {"message": "no memory"},
            "loraloop": {"progress": {"step": step}},
        }

    def _work(self) -> None:
        self.working_since, self.manners.first_token_s = time.monotonic(), SLOW_S

    def _rest(self) -> None:
        if self.working_since is not None:
            self.steps += (time.monotonic() - self.working_since) * STEPS_PER_S
        self.working_since, self.manners.first_token_s = None, FAST_S


@contextmanager
def training_server(**how: Any) -> Iterator[tuple[str, Trainer]]:
    manners = Manners(first_token_s=FAST_S, gap_s=0.0)
    trainer = Trainer(manners, **how)

    class Both(Handler):
        def do_GET(self) -> None:
            if self.path == "/v1/models":
                super().do_GET()
            else:
                self.reply(200, trainer.act(self.path, {}))

        def do_POST(self) -> None:
            if self.path == "/v1/chat/completions":
                super().do_POST()
                return
            content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            is_json = self.headers.get("Content-Type") == "application/json"
            self.reply(200, trainer.act(self.path, json.loads(content) if is_json else {}))

    Both.manners = manners
    server = ThreadingHTTPServer(("127.0.0.1", 0), Both)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", trainer
    server.shutdown()
    thread.join()
    server.server_close()


def target_of(url: str) -> Target:
    return open_target("fake", url, model="", api_key="", seed=1)


def run(url: str, *more: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    options = ["--seconds", "0.5", "--settle", "0.1", "--prompt-tokens", "32", "--new-tokens", "2"]
    code = main(["--url", url, *options, *more])
    return code, json.loads(capsys.readouterr().out.splitlines()[-1]) if code == 0 else {}


def test_the_ratio_is_that_of_the_server(capsys: pytest.CaptureFixture[str]) -> None:
    with training_server() as (url, trainer):
        code, report = run(url, "--rounds", "2", "--alone", "--set", "rank=4", capsys=capsys)
    assert code == 0
    assert report["ttft_p90_ratio"]["median"] == pytest.approx(SLOW_S / FAST_S, rel=0.4)
    assert report["server_ttft_p90_ratio"]["median"] == pytest.approx(SLOW_S / FAST_S, rel=0.01)
    for name in ("with", "alone"):
        for span in report["spans"][name]:
            assert span["steps_per_s"] == pytest.approx(STEPS_PER_S, rel=0.2)
    assert [len(spans) for spans in report["spans"].values()] == [2, 2, 2]
    assert report["messages"] == ["Training stands aside"]
    assert trainer.order["loraloop"]["rank"] == 4
    # One job for all rounds, at rest while it is not measured, and nothing left of it at the end.
    changes = [word for word in trainer.asked if word in ("jobs", "resume", "pause", "cancel")]
    assert changes == ["jobs", *["pause", "resume"] * 3, "pause", "cancel"]


def test_a_job_that_fails_ends_the_measurement_with_its_reason(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with training_server(fails=True) as (url, _):
        assert main(["--url", url, "--seconds", "0.1", "--settle", "0.1"]) == 1
    assert "no memory" in capsys.readouterr().err


def test_closed_streams_ask_again_when_they_are_answered() -> None:
    manners = Manners(first_token_s=0.05, gap_s=0.0)
    with fake_completions(manners) as url:
        heard = hear(target_of(url), Traffic(3, None, 32, 2), 0.5, seed=1)
    assert 15 <= len(heard.ttft_ms) <= 33
    assert min(heard.ttft_ms) >= 50
    prompts = {body["messages"][0]["content"] for body in manners.bodies[-len(heard.ttft_ms) :]}
    assert len(prompts) == len(heard.ttft_ms)


def test_open_arrivals_do_not_wait_for_answers() -> None:
    with fake_completions(Manners(first_token_s=0.2, gap_s=0.0)) as url:
        heard = hear(target_of(url), Traffic(1, 40.0, 32, 2), 0.5, seed=1)
    assert 8 <= len(heard.ttft_ms) <= 36  # 20 expected; one closed stream would have sent 3
    assert heard.percentile(0.5) < 300


def test_percentiles_are_nearest_ranks() -> None:
    heard = Heard(tuple(float(n) for n in range(10, 0, -1)), 10, 1.0)
    assert [heard.percentile(q) for q in (0.0, 0.1, 0.9, 0.91, 1.0)] == [1, 1, 9, 10, 10]
