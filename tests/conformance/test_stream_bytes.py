"""Streams byte by byte, through the real tokenizer and whatever random weights say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai import APIError, OpenAI

from tests.conformance.conftest import ASK, BASE, CHAT, POET, Real
from tests.server.conftest import wait_until

PREFIX, SUFFIX = b"data: ", b"\n\n"
WILD: dict[str, Any] = {
    "model": POET,
    "messages": ASK,
    "max_tokens": 32,
    "temperature": 2,
    "seed": 1,
    "reasoning_effort": "none",
}


def frames(raw: bytes) -> list[bytes]:
    """The data of each event. Nothing stands between or behind them."""
    assert raw.endswith(SUFFIX)
    found = raw.removesuffix(SUFFIX).split(SUFFIX)
    assert all(each.startswith(PREFIX) and b"\n" not in each for each in found)
    return [each.removeprefix(PREFIX) for each in found]


def streamed(real: Real, body: dict[str, Any], path: str = CHAT) -> list[dict[str, Any]]:
    """The chunks of a stream that ended well."""
    response = real.post(path, {**body, "stream": True})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"].startswith("no-")
    *chunks, last = frames(response.content)
    assert last == b"[DONE]"
    return [json.loads(chunk) for chunk in chunks]


def choices(chunks: list[dict[str, Any]], index: int = 0) -> Iterator[dict[str, Any]]:
    return (choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index)


def text_of(chunks: list[dict[str, Any]], index: int = 0) -> str:
    return "".join(choice["delta"].get("content", "") for choice in choices(chunks, index))


def test_the_exact_bytes_of_a_short_stream(real: Real) -> None:
    body = {"model": BASE, "messages": ASK, "max_tokens": 1, "temperature": 0, "n": 2}
    whole = real.post(CHAT, body).json()
    asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
    raw = real.post(CHAT, asked).content
    first = json.loads(frames(raw)[0])
    head = {key: first[key] for key in ("id", "object", "created", "model", "system_fingerprint")}
    assert head["object"] == "chat.completion.chunk"
    assert {**head, "id": "", "object": "", "created": 0} == {
        "id": "",
        "object": "",
        "created": 0,
        "model": whole["model"],
        "system_fingerprint": whole["system_fingerprint"],
    }

    def chunk(index: int, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        return {**head, "choices": [choice], "usage": None}

    says = [choice["message"]["content"] for choice in whole["choices"]]
    usage = json.loads(frames(raw)[-2])["usage"]
    cached = usage.pop("prompt_tokens_details")
    assert usage == {key: whole["usage"][key] for key in usage}
    assert set(cached) == {"cached_tokens"}
    usage = {"prompt_tokens_details": cached, **usage}
    expected = [chunk(i, {"role": "assistant", "content": ""}) for i in (0, 1)]
    for index in (0, 1):
        expected += [chunk(index, {"content": says[index]}), chunk(index, {}, "length")]
    last = {**head, "choices": [], "usage": usage}

    def canonical(values: Any) -> list[str]:
        return sorted(json.dumps(value, sort_keys=True) for value in values)

    assert canonical(map(json.loads, frames(raw)[:-1])) == canonical([*expected, last])
    assert [json.loads(each)["choices"][0]["delta"] for each in frames(raw)[:2]] == [
        {"role": "assistant", "content": ""}
    ] * 2
    assert json.loads(frames(raw)[-2])["choices"] == []
    assert frames(raw)[-1] == b"[DONE]"


def test_deltas_are_whole_characters_of_the_text_that_its_tokens_say(real: Real) -> None:
    """Random ids: Chinese, emoji, halves of both. What is no character is U+FFFD, as everywhere."""
    added = real.server.base.tokenizer.added_tokens_decoder.values()
    hidden = {str(token).encode() for token in added if str(token).startswith("<|")}
    is_broken = False
    for seed in range(5):
        body = {**WILD, "seed": seed, "logprobs": True, "ignore_eos": True}
        chunks = streamed(real, body)
        deltas = [choice["delta"].get("content", "") for choice in choices(chunks)]
        entries = [
            entry
            for choice in choices(chunks)
            for entry in (choice["logprobs"] or {"content": []})["content"]
        ]
        assert len(entries) == 32
        parts = [bytes(entry["bytes"]) for entry in entries]
        raw = b"".join(part for part in parts if part not in hidden)
        text = "".join(deltas)
        # Bytes that are no character may become one mark or several; nothing else may differ.
        assert text.replace("\ufffd", "") == raw.decode("utf-8", "ignore")
        is_broken = is_broken or "\ufffd" in text
        whole = real.post(CHAT, body).json()["choices"][0]
        assert text == whole["message"]["content"]
        assert whole["logprobs"]["content"] == entries
    assert is_broken  # else nothing was tried


def spelled(real: Real, text: str) -> list[dict[str, Any]]:
    """A stream that is made to say ``text``, token by token."""
    body = {
        "model": BASE,
        "messages": ASK,
        "max_tokens": 400,
        "reasoning_effort": "none",
        "structured_outputs": {"choice": [text]},
    }
    return streamed(real, body)


@pytest.mark.parametrize(
    "text",
    [
        "我的订单到哪里了？谢谢！",
        "🦊🍵👨‍👩‍👧‍👦🇩🇪e\u0301ﷺ𝔘𝔫𝔦",
        "a𐍈ß\u200b漢字\U0001f9ffЖ",
        "\\n \n\t\"'</think >{}",
    ],
)
def test_characters_of_many_tokens_come_whole(real: Real, text: str) -> None:
    chunks = spelled(real, text)
    assert text_of(chunks) == text
    for choice in choices(chunks):
        assert "\ufffd" not in choice["delta"].get("content", "")
    assert [choice["finish_reason"] for choice in choices(chunks)][-1] == "stop"


def test_an_answer_cut_inside_a_character_shows_what_came(real: Real) -> None:
    for limit in range(1, 12):
        body = {
            "model": BASE,
            "messages": ASK,
            "max_tokens": limit,
            "temperature": 0,
            "reasoning_effort": "none",
            "structured_outputs": {"choice": ["🦊🧿🦊"]},
        }
        chunks = streamed(real, body)
        text = text_of(chunks)
        assert text.rstrip("\ufffd") in ("", "🦊", "🦊🧿", "🦊🧿🦊")
        assert text == real.post(CHAT, body).json()["choices"][0]["message"]["content"]


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(data=st.data())
def test_stop_strings_never_leak(real: Real, data: Any) -> None:
    seed = data.draw(st.integers(0, 3), label="seed")
    body = {**WILD, "seed": seed, "max_tokens": 16}
    text = _unstopped(real, seed)
    stops = data.draw(
        st.lists(
            st.builds(
                lambda at, length, tail: text[at : at + length] + tail,
                st.integers(0, max(len(text) - 1, 0)),
                st.integers(1, 9),
                st.sampled_from(["", "", "x", "。", "🦊"]),
            ),
            min_size=1,
            max_size=4,
        ),
        label="stops",
    )
    found = [text.index(stop) for stop in stops if stop in text]
    # The first of them to be complete ends the answer; what it cuts off may hold another's begin.
    ends = [text.index(stop) + len(stop) for stop in stops if stop in text]
    chunks = streamed(real, {**body, "stop": stops})
    said = text_of(chunks)
    whole = real.post(CHAT, {**body, "stop": stops}).json()["choices"][0]
    assert said == whole["message"]["content"]
    assert not any(stop in said for stop in stops)
    assert text.startswith(said)
    reason = [choice["finish_reason"] for choice in choices(chunks)][-1]
    assert reason == whole["finish_reason"]
    if found:
        assert reason == "stop"
        assert min(found) <= len(said) <= min(ends)
    else:
        assert said == text


_texts: dict[int, str] = {}


def _unstopped(real: Real, seed: int) -> str:
    if seed not in _texts:
        answer = real.post(CHAT, {**WILD, "seed": seed, "max_tokens": 16}).json()
        _texts[seed] = answer["choices"][0]["message"]["content"]
    return _texts[seed]


def test_usage_of_a_stream_is_the_whole_answers(real: Real) -> None:
    for fields in ({"n": 2}, {"stop": "的"}):
        body = {**WILD, **fields}
        whole = real.post(CHAT, body).json()["usage"]
        chunks = streamed(real, {**body, "stream_options": {"include_usage": True}})
        *others, last = chunks
        assert (last["choices"], last["usage"]) == ([], {**whole, **_cached(last)})
        assert all(chunk["usage"] is None for chunk in others)
        plain = streamed(real, body)
        assert not any("usage" in chunk for chunk in plain)


def _cached(chunk: dict[str, Any]) -> dict[str, Any]:
    """What an earlier request with the same prompt made possible."""
    return {"prompt_tokens_details": chunk["usage"]["prompt_tokens_details"]}


def test_plain_completions_stream_what_they_say(real: Real) -> None:
    body = {"model": POET, "prompt": ["茶 ", "🦊"], "max_tokens": 12, "seed": 3, "echo": True}
    whole = real.post("/v1/completions", {**body, "logprobs": 1}).json()
    chunks = streamed(real, {**body, "logprobs": 1}, "/v1/completions")
    for index in (0, 1):
        own = list(choices(chunks, index))
        assert "".join(choice["text"] for choice in own) == whole["choices"][index]["text"]
        for key in ("tokens", "token_logprobs", "text_offset", "top_logprobs"):
            parts = [choice["logprobs"][key] for choice in own if choice["logprobs"]]
            assert [each for part in parts for each in part] == whole["choices"][index]["logprobs"][
                key
            ], key


def test_an_error_after_the_first_byte_is_an_event_and_the_end(real: Real) -> None:
    body = {**WILD, "max_tokens": 1800, "ignore_eos": True}
    late = {"x-request-timeout": "0.4"}
    with real.http.stream("POST", CHAT, json={**body, "stream": True}, headers=late) as response:
        assert response.status_code == 200
        *chunks, last = frames(response.read())
    assert all("choices" in json.loads(chunk) for chunk in chunks)
    error = json.loads(last)
    assert set(error) == {"error"}
    assert error["error"]["code"] == "request_timeout"
    with OpenAI(base_url=real.url + "/v1", api_key="none", max_retries=3) as client:
        stream: Any = client.chat.completions.create(
            model=POET,
            messages=ASK,
            max_tokens=1800,
            stream=True,
            extra_body={"ignore_eos": True},
            extra_headers=late,
        )
        assert next(stream).choices[0].delta.role == "assistant"
        with pytest.raises(APIError, match=r"0\.4"):
            list(stream)


def test_whoever_leaves_in_the_middle_leaves_nothing(real: Real) -> None:
    body = {**WILD, "max_tokens": 1500, "stream": True, "n": 3}
    long = {"type": "object", "properties": {"x": {"type": "string", "minLength": 9000}}}
    function = {"name": "f", "parameters": {**long, "required": ["x"]}}
    tools = [{"type": "function", "function": function}]
    for extra in ({"ignore_eos": True}, {"tools": tools, "tool_choice": "required"}):
        with httpx.stream("POST", real.url + CHAT, json={**body, **extra}) as response:
            lines = response.iter_lines()
            for _ in range(8):
                next(lines)
        engine = real.server.engine
        wait_until(lambda engine=engine: engine.stats().num_running == 0)  # type: ignore[misc]
        stats = engine.stats()
        assert stats.kv_blocks_free == stats.kv_blocks_total
