"""The streaming client: what counts as a token, and which streams are broken."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.sse import BrokenStream, data_fields, has_token, read_answer


def event(delta: dict[str, object], finish: str | None = None, fp: str = "fp_a") -> bytes:
    choice = {"delta": delta, "finish_reason": finish}
    body = json.dumps({"choices": [choice], "system_fingerprint": fp}, ensure_ascii=False)
    return f"data: {body}\n\n".encode()


GOOD = [
    event({"role": "assistant", "content": ""}),
    event({"content": "灯"}),
    event({"content": ""}),
    event({"content": "笼"}),
    event({}, "stop"),
    b'data: {"choices": [], "usage": {"completion_tokens": 7}}\n\n',
    b"data: [DONE]\n\n",
]


def test_text_tokens_and_times_of_a_whole_stream() -> None:
    started = time.perf_counter()
    answer = read_answer(GOOD, started)
    assert answer.text == "灯笼"
    assert answer.num_tokens == 7  # usage wins over counting events
    assert len(answer.token_times_s) == 3  # the empty one counts, the role's event does not
    assert answer.ttft_s == answer.token_times_s[0] > 0
    assert len(answer.gaps_s) == 2


def test_tokens_are_counted_where_the_server_sends_no_usage() -> None:
    assert read_answer([*GOOD[:5], GOOD[6]], time.perf_counter()).num_tokens == 3


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60), st.booleans())
def test_events_survive_any_cutting_of_the_bytes(sizes: list[int], is_crlf: bool) -> None:
    stream = b": a comment\n\n" + b"".join(GOOD)
    if is_crlf:
        stream = stream.replace(b"\n", b"\r\n")
    chunks, place, turn = [], 0, 0
    while place < len(stream):
        size = sizes[turn % len(sizes)]
        chunks.append(stream[place : place + size])
        place, turn = place + size, turn + 1
    assert read_answer(chunks, time.perf_counter()).text == "灯笼"


def test_an_event_of_several_data_lines_is_one() -> None:
    assert list(data_fields([b"data: a\ndata: b\n\ndata:c\n\n"])) == ["a\nb", "c"]


@pytest.mark.parametrize(
    ("chunks", "reason"),
    [
        (GOOD[:-1], "without \\[DONE\\]"),
        ([GOOD[1], GOOD[-1]], "without a finish_reason"),
        ([b'data: {"error": {"message": "out of blocks"}}\n\n'], "out of blocks"),
        ([GOOD[1], event({"content": "x"}, fp="fp_b")], "two versions"),
    ],
)
def test_broken_streams_say_what_is_wrong(chunks: list[bytes], reason: str) -> None:
    with pytest.raises(BrokenStream, match=reason):
        read_answer(chunks, time.perf_counter())


@pytest.mark.parametrize(
    ("delta", "expected"),
    [
        ({"content": ""}, True),
        ({"content": "a"}, True),
        ({"role": "assistant", "content": ""}, False),
        ({"role": "assistant", "content": "a"}, True),
        ({"reasoning_content": "hm"}, True),
        ({"content": None}, False),
        ({}, False),
    ],
)
def test_which_deltas_are_tokens(delta: dict[str, object], expected: bool) -> None:
    assert has_token(delta) is expected
