"""The comparison of a polite key alone and beside a greedy one."""

from __future__ import annotations

import json

import pytest

from loadtests.tenants import main
from tests.loadtests.fake_completions import Manners, fake_completions

KEYS = ["--polite-key", "sk-polite", "--greedy-key", "sk-greedy"]


def test_spans_alternate_and_the_greedy_key_keeps_its_streams_up(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loadtests.tenants.RAMP_S", 0.3)
    short = ["--seconds", "0.6", "--rounds", "2", "--streams", "1", "--prompt-tokens", "24"]
    greedy = ["--greedy-streams", "3", "--greedy-prompt-tokens", "30", "--greedy-new-tokens", "9"]
    manners = Manners(first_token_s=0.02)
    with fake_completions(manners) as url:
        assert main(["--url", url, *KEYS, *short, *greedy, "--new-tokens", "5"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [len(spans) for spans in report["spans"].values()] == [2, 2]
    assert len(report["ttft_p90_ratio"]["rounds"]) == 2
    lengths = [body["max_tokens"] for body in manners.bodies if body.get("stream")]
    assert lengths.count(5) > 20
    assert lengths.count(9) > 20
    # The first round ends with the greedy key, the second begins with it.
    first, last = lengths.index(9), len(lengths) - lengths[::-1].index(9)
    assert 5 in lengths[:first]
    assert set(lengths[last:]) == {5}


def test_a_server_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--url", "http://127.0.0.1:1", *KEYS]) == 1
    assert "ConnectionRefusedError" in capsys.readouterr().err
