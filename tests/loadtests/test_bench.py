"""The HTTP benchmark against a server whose times and counts are known."""

from __future__ import annotations

import json

import pytest

from loadtests.bench import main, remarks, summary
from loadtests.client import BadAnswer, Recording, parse, parse_url
from loadtests.measure import Load, Sample, Target, loads, open_target
from loadtests.sse import BrokenStream
from tests.loadtests.fake_completions import TEMPLATE_TOKENS, Manners, fake_completions

TOKEN = b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n'
ROLE = b'data: {"choices": [{"delta": {"role": "assistant", "content": ""}}]}\n\n'
LAST = b'data: {"choices": [{"delta": {}, "finish_reason": "length"}], "usage": '
LAST += b'{"prompt_tokens": 5, "completion_tokens": 2}}\n\n'


def target_of(url: str, seed: int = 1) -> Target:
    return open_target("fake", url, model="", api_key="", seed=seed)


def test_a_token_is_clocked_at_the_piece_that_completes_its_event() -> None:
    pieces = ((0.1, ROLE + TOKEN[:20]), (0.2, TOKEN[20:] + TOKEN), (0.5, LAST))
    answer = parse(Recording(100.0, pieces))
    assert answer.ttft_s == 0.2
    assert answer.token_times_s == [0.2, 0.2]
    assert (answer.num_prompt_tokens, answer.num_tokens, answer.is_counted) == (5, 2, True)


def test_a_stream_without_done_is_whole_if_it_has_a_finish_reason() -> None:
    assert parse(Recording(0.0, ((0.1, TOKEN + LAST),))).num_tokens == 2
    with pytest.raises(BrokenStream, match="finish_reason"):
        parse(Recording(0.0, ((0.1, TOKEN),)))


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://h:8000", ("h", 8000, "/v1", False)),
        ("http://h:8000/v1/", ("h", 8000, "/v1", False)),
        ("h:9", ("h", 9, "/v1", False)),
        ("https://h/api/v1", ("h", 443, "/api/v1", True)),
    ],
)
def test_urls(url: str, expected: tuple[str, int, str, bool]) -> None:
    endpoint = parse_url(url)
    assert (endpoint.host, endpoint.port, endpoint.prefix, endpoint.is_tls) == expected


def test_a_url_that_is_none_says_how_to_write_one() -> None:
    with pytest.raises(ValueError, match=r"write it as http://"):
        parse_url("ftp://h")


def test_first_token_and_rate_are_those_of_the_server() -> None:
    manners = Manners(first_token_s=0.08, gap_s=0.002)
    with fake_completions(manners) as url:
        target = target_of(url)
        first = target.run(loads((), num_long=64)[0])
        many = target.run(Load("streams_4", "4", 4, 32, 20))
    assert 80 <= first.value < 200
    assert first.prompt_tokens == (64, 64, 64)
    assert many.new_tokens == (20,) * 4
    assert many.value < 4 * 20 / (0.08 + 19 * 0.002)  # nobody is faster than the server sleeps
    assert many.value > 4 * 20 / 1.0


def test_requests_ask_for_what_the_server_accepts_and_never_repeat_a_prompt() -> None:
    manners = Manners(first_token_s=0.0, refused_fields=frozenset({"ignore_eos"}))
    with fake_completions(manners) as url:
        target = target_of(url)
        target.run(Load("streams_8", "8", 8, 32, 2))
    assert target.extras == {"stream_options": {"include_usage": True}}
    prompts = [body["messages"][0]["content"] for body in manners.bodies[-8:]]
    assert len(set(prompts)) == 8
    assert {len(prompt.split()) + TEMPLATE_TOKENS for prompt in prompts} == {32}


def test_a_server_that_sends_the_prompt_back_is_not_clocked_by_it() -> None:
    with fake_completions(Manners(echoes=True)) as url:
        target = target_of(url)
        with pytest.raises(BadAnswer, match="prompt back"):
            target.run(Load("streams_1", "1", 1, 32, 2))


def test_remarks_tell_short_answers_and_counted_events() -> None:
    load = Load("streams_2", "2 streams", 2, 128, 64)
    sample = Sample(10.0, (5.0, 6.0), (128, 90), (64, 3), is_counted=False)
    found = remarks(load, summary(load, [sample]))
    assert [note.split(": ")[1].split(",")[0] for note in found] == [
        "prompts had 90 to 128 tokens",
        "answers had 3 to 64 tokens",
        "tokens counted by events",
    ]


def test_the_command_prints_a_table_and_json_last(capsys: pytest.CaptureFixture[str]) -> None:
    short = ["--streams", "1,2", "--new-tokens", "4", "--prompt-tokens", "24", "--rounds", "2"]
    with fake_completions(Manners(first_token_s=0.0, num_missing=1)) as url:
        assert main(["--url", url, *short, "--long-prompt", "48", "--seed", "3"]) == 0
    printed = capsys.readouterr().out
    report = json.loads(printed.splitlines()[-1])
    assert "TTFT, 48-token prompt, alone" in printed
    assert [row["key"] for row in report["rows"]] == ["ttft", "streams_1", "streams_2"]
    assert all(len(row["samples"]) == 2 for row in report["rows"])
    assert report["seed"] == 3
    assert "1 stream, whole requests: answers had 3 to 3 tokens, not 4" in report["notes"]


def test_a_server_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--url", "http://127.0.0.1:1"]) == 1
    assert "ConnectionRefusedError" in capsys.readouterr().err
