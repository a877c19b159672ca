"""Chat completions over a real socket, with plain HTTP: bodies, streams, parameters."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import httpx
import pytest

from server.answers import streaming
from server.answers.generation import merge
from server.engine.request import Delta
from server.state import Server
from tests.server.conftest import Publish, wait_until
from tests.server.fakes import FIRST_ID, FakeEngine

URL = "/v1/chat/completions"
HELLO = {"model": "tiny-base", "messages": [{"role": "user", "content": "hi"}]}


def post(client: httpx.Client, **fields: Any) -> httpx.Response:
    return client.post(URL, json={**HELLO, **fields})


def events(response: httpx.Response) -> list[Any]:
    """The parsed events; everything in the stream must be an event."""
    blocks = response.text.split("\n\n")
    assert blocks.pop() == ""
    assert all(block.startswith("data: ") for block in blocks)
    return [json.loads(block[6:]) if block != "data: [DONE]" else "DONE" for block in blocks]


def test_a_whole_answer(client: httpx.Client) -> None:
    response = post(client)
    body = response.json()
    assert response.status_code == 200
    assert body["id"].startswith("chatcmpl-")
    assert body["object"] == "chat.completion"
    assert body["model"] == "tiny-base"
    assert body["system_fingerprint"].startswith("fp_")
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello, world!", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert body["usage"]["prompt_tokens"] == 3
    assert body["usage"]["completion_tokens"] == 6
    assert body["usage"]["total_tokens"] == 9
    assert body["usage"]["prompt_tokens_details"] == {"cached_tokens": 2}
    assert response.headers["x-loraloop-adapter"] == "base"
    assert "x-loraloop-experiment" not in response.headers
    assert response.headers["x-request-id"].startswith("req_")


def test_a_stream_byte_for_byte(client: httpx.Client) -> None:
    response = post(client, stream=True, max_tokens=2, stream_options={"include_usage": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    first = json.loads(response.text.split("\n\n")[0][6:])
    head = (
        f'data: {{"id":"{first["id"]}","object":"chat.completion.chunk",'
        f'"created":{first["created"]},"model":"tiny-base",'
        f'"system_fingerprint":"{first["system_fingerprint"]}","choices":['
    )

    def chunk(delta: str, finish: str = "null") -> str:
        choice = f'{{"index":0,"delta":{delta},"logprobs":null,"finish_reason":{finish}}}'
        return f'{head}{choice}],"usage":null}}\n\n'

    assert response.text == (
        chunk('{"role":"assistant","content":""}')
        + chunk('{"content":"Hello"}')
        + chunk('{"content":","}')
        + chunk("{}", '"length"')
        + head
        + '],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5,'
        '"prompt_tokens_details":{"cached_tokens":2},'
        '"completion_tokens_details":{"reasoning_tokens":0}}}\n\n'
        "data: [DONE]\n\n"
    )


def test_a_stream_without_usage_has_no_usage_key(client: httpx.Client) -> None:
    chunks = events(post(client, stream=True))
    assert chunks[-1] == "DONE"
    assert all("usage" not in chunk for chunk in chunks[:-1])
    text = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks[:-1])
    assert text == "Hello, world!"


def test_a_stream_opens_with_the_role_when_its_first_token_is_long_in_coming(
    client: httpx.Client, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not before: until then a failure can still have its true status."""
    monkeypatch.setattr(streaming, "HOLD_S", 0.2)
    engine.script.hold = asyncio.Event()
    began = time.monotonic()
    with client.stream("POST", URL, json={**HELLO, "stream": True}) as response:
        assert time.monotonic() - began >= 0.2
        first = next(response.iter_lines())
        assert json.loads(first[6:])["choices"][0]["delta"]["role"] == "assistant"
        assert engine.num_tokens == 0


def test_every_sampling_parameter_reaches_the_engine(
    client: httpx.Client, engine: FakeEngine
) -> None:
    given = {
        "max_tokens": 5,
        "temperature": 0.25,
        "top_p": 0.5,
        "top_k": 7,
        "min_p": 0.125,
        "min_tokens": 2,
        "ignore_eos": True,
        "seed": -9,
        "stop": ["a", "b"],
        "stop_token_ids": [5],
        "presence_penalty": -1.5,
        "frequency_penalty": 1.5,
        "logprobs": True,
        "top_logprobs": 2,
    }
    assert post(client, **given, user="u", metadata={"a": "b"}, store=False).status_code == 200
    sampling = engine.requests[0].sampling
    for name in given.keys() - {"stop", "stop_token_ids", "logprobs"}:
        assert getattr(sampling, name) == given[name], name
    assert sampling.stop == ("a", "b")
    assert sampling.stop_token_ids == {5}


def test_zero_is_a_value_and_null_is_not(client: httpx.Client, engine: FakeEngine) -> None:
    post(client, temperature=0, top_p=0, frequency_penalty=0)
    post(client, temperature=None, top_p=None, top_k=-1, seed=None, stop=None, max_tokens=None)
    zero, null = (request.sampling for request in engine.requests)
    assert (zero.temperature, zero.top_p) == (0.0, 0.0)
    assert (null.temperature, null.top_p, null.top_k) == (1.0, 1.0, 0)
    assert null.max_tokens == engine.max_model_len - 3  # what is left of the context


def test_n_choices_are_interleaved_and_differ_in_seed(
    client: httpx.Client, engine: FakeEngine
) -> None:
    body = post(client, n=3, seed=5).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert [request.sampling.seed for request in engine.requests] == [5, 6, 7]
    assert body["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 18,
        "total_tokens": 21,
        "prompt_tokens_details": {"cached_tokens": 6},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
    chunks = events(post(client, n=3, stream=True))
    for index in range(3):
        own = [c["choices"][0] for c in chunks[:-1] if c["choices"][0]["index"] == index]
        assert own[0]["delta"]["role"] == "assistant"
        assert own[-1]["finish_reason"] == "stop"
        assert "".join(c["delta"].get("content", "") for c in own) == "Hello, world!"


def test_logprobs_of_a_whole_and_a_streamed_answer_are_equal(client: httpx.Client) -> None:
    fields = {"logprobs": True, "top_logprobs": 2}
    whole = post(client, **fields).json()["choices"][0]["logprobs"]["content"]
    assert [entry["token"] for entry in whole] == ["Hello", ",", " wor", "ld", "!"]
    assert whole[0]["bytes"] == list(b"Hello")
    assert whole[0]["logprob"] == -0.5
    assert [top["token"] for top in whole[0]["top_logprobs"]] == ["Hello", ","]
    streamed: list[Any] = []
    for chunk in events(post(client, stream=True, **fields))[:-1]:
        if logprobs := chunk["choices"][0]["logprobs"]:
            streamed += logprobs["content"]
    assert streamed == whole


def test_a_token_without_text_is_not_sent_and_counts(
    client: httpx.Client, engine: FakeEngine, fake_server: Server
) -> None:
    engine.script.tokens = (FIRST_ID + 6,)
    chunks = events(post(client, stream=True, max_tokens=1))
    assert [c["choices"][0]["delta"] for c in chunks[:-1]] == [
        {"role": "assistant", "content": ""},
        {},
    ]
    report = fake_server.telemetry.report()["adapters"]["base"]
    assert report["ttft_ms"]["p50"] > 0
    assert report["completion_tokens"] == 1


def test_deltas_that_pile_up_become_one_event() -> None:
    deltas = [Delta("r", "a", (1,)), Delta("r", "b", (2,)), Delta("r", "c", (3,), (), "stop")]
    assert merge(deltas) == Delta("r", "abc", (1, 2, 3), (), "stop")


def test_an_adapter_answers_under_its_exact_version(
    client: httpx.Client, engine: FakeEngine, publish: Publish, fake_server: Server
) -> None:
    one, two = publish("shop"), publish("shop")
    base = post(client)
    for model, version in (
        ("shop", one),  # the first version is champion
        ("shop@2", two),
        ("shop@latest", two),
        ("tiny-base:shop", one),
        ("ft:tiny-base:loraloop:shop:2", two),
    ):
        response = post(client, model=model)
        assert response.json()["model"] == version.id
        assert response.headers["x-loraloop-adapter"] == version.id
        assert engine.requests[-1].adapter == version.content_hash
        assert response.json()["system_fingerprint"] != base.json()["system_fingerprint"]
    stats = fake_server.telemetry.report()["adapters"]
    assert (stats["shop@1"]["requests"], stats["shop@2"]["requests"]) == (2, 3)


def test_a_failure_after_the_first_byte_is_an_error_event_and_the_end(
    client: httpx.Client, engine: FakeEngine, fake_server: Server
) -> None:
    engine.script.fail_after = 2
    chunks = events(post(client, stream=True))
    assert chunks[-1]["error"]["code"] == "generation_failed"
    assert "boom" not in json.dumps(chunks)
    assert "DONE" not in chunks
    assert fake_server.telemetry.report()["adapters"]["base"]["errors"] == 1


def test_a_failure_of_a_whole_answer_is_a_500_without_internals(
    client: httpx.Client, engine: FakeEngine
) -> None:
    engine.script.fail_after = 2
    response = post(client)
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "server_error"
    assert "boom" not in response.text


@pytest.mark.parametrize("is_stream", [True, False])
def test_generation_stops_when_the_client_leaves(
    client: httpx.Client, engine: FakeEngine, fake_server: Server, is_stream: bool
) -> None:
    engine.script.is_endless = True
    engine.script.delay_s = 0.002
    engine.max_model_len = 1_000_000
    with httpx.Client(base_url=client.base_url) as leaver:
        try:
            body = {**HELLO, "stream": is_stream, "n": 2}
            with leaver.stream("POST", URL, json=body, timeout=0.15) as response:
                next(response.iter_lines())
        except httpx.ReadTimeout:
            assert not is_stream
    wait_until(lambda: not engine.running)
    assert len(engine.aborted) == 2
    tokens = engine.num_tokens
    assert post(client, max_tokens=1).status_code == 200
    assert engine.num_tokens == tokens + 1
    wait_until(lambda: fake_server.telemetry.report()["adapters"]["base"]["requests"] == 2)
    assert fake_server.telemetry.report()["adapters"]["base"]["aborted"] == 1
    assert fake_server.telemetry.report()["adapters"]["base"]["errors"] == 0


def test_answers_can_be_scored_afterwards(client: httpx.Client, fake_server: Server) -> None:
    answer_id = post(client, user="anna").json()["id"]
    assert fake_server.feedback.record(answer_id, 1.0).model == "tiny-base"
