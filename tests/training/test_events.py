"""Events on a pipe, and what signals do to a run."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from rich.console import Console

from training.errors import Interrupted
from training.events import JsonLines, ProgressBar
from training.run import _tell_failure
from training.signals import StopRequest

PUBLISHED = {
    "event": "published",
    "adapter": "a@1",
    "metrics": {"base_perplexity": 20.0, "adapter_perplexity": 5.0},
    "gate": "failed",
    "failed_gates": ["bleu4:chats is 0.2"],
    "duration_s": 3.0,
}


def test_every_event_is_one_line_that_arrives_at_once() -> None:
    reading, writing = os.pipe()
    reporter = JsonLines(os.fdopen(writing, "w", encoding="utf-8"), lost=pytest.fail)
    reporter.emit({"event": "failed", "message": "two\nlines 甄嬛"})
    assert json.loads(os.read(reading, 1000)) == {
        "event": "failed",
        "message": "two\nlines 甄嬛",
    }
    reporter.close()
    assert os.read(reading, 1) == b""


def test_a_reader_that_went_away_stops_the_run_and_raises_nothing() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    stop = StopRequest()
    reporter = JsonLines(os.fdopen(writing, "w", encoding="utf-8"), lost=stop.ask)
    reporter.emit({"event": "progress"})
    reporter.emit({"event": "progress"})
    reporter.close()
    with pytest.raises(Interrupted):
        stop.check()


def test_the_bar_says_in_words_how_a_run_ended() -> None:
    out = io.StringIO()
    bar = ProgressBar(Console(file=out, width=200))
    bar.emit(PUBLISHED)
    bar.emit({"event": "failed", "code": "gate", "message": "[x] not better"})
    bar.emit({"event": "checkpoint", "step": 3, "path": "unsaid"})
    bar.close()
    assert "a@1 in 3 s: held-out perplexity 20.00 → 5.00" in out.getvalue()
    assert "gate failed: bleu4:chats is 0.2" in out.getvalue()
    assert "failed (gate): [x] not better" in out.getvalue()
    assert "unsaid" not in out.getvalue()


@pytest.mark.parametrize("shortage", [MemoryError(), "of torch", RuntimeError("boom")])
def test_a_lack_of_memory_has_a_code_and_a_remedy(shortage: Any) -> None:
    if shortage == "of torch":
        with pytest.raises(RuntimeError) as caught:
            torch.empty(1 << 60, dtype=torch.uint8)
        shortage = caught.value
    out = io.StringIO()
    _tell_failure(shortage, JsonLines(out, lost=pytest.fail))
    event = json.loads(out.getvalue())
    is_ours = str(shortage) != "boom"
    assert event["code"] == ("out_of_memory" if is_ours else "internal")
    assert ("lower batch_size" in event["message"]) == is_ours


def test_under_nohup_a_closed_terminal_is_nothing() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest().installed():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.fixture
def _with_a_terminal() -> Iterator[None]:
    """SIGHUP as a shell leaves it, also where the tests themselves run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("_with_a_terminal")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_while_training_the_first_signal_asks_and_the_second_insists(number: int) -> None:
    before = signal.getsignal(number)
    stop = StopRequest()
    with stop.installed():
        with stop.noted():
            os.kill(os.getpid(), number)
            assert stop.is_set
            with pytest.raises(Interrupted):
                os.kill(os.getpid(), number)
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), number)
        stop.ignore()
        os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before
