"""The official client, sync and async, against the real HTTP stack."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionMessageParam

from server.engine.errors import EngineOverloaded
from tests.server.conftest import Live, Publish, wait_until
from tests.server.fakes import FakeEngine

BASE = "tiny-base"
HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]


@pytest.fixture
def client(live: Live) -> Iterator[OpenAI]:
    with OpenAI(base_url=live.url + "/v1", api_key="none", max_retries=0, timeout=20) as made:
        yield made


def test_a_chat(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=BASE, messages=HELLO, n=2, logprobs=True)
    assert [choice.message.content for choice in answer.choices] == ["Hello, world!"] * 2
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 12
    assert answer.choices[1].logprobs is not None
    assert answer.choices[1].logprobs.content is not None
    assert answer.choices[1].logprobs.content[0].token == "Hello"


def test_a_streamed_chat(client: OpenAI) -> None:
    stream = client.chat.completions.create(
        model=BASE, messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "Hello, world!"
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 9


def test_the_streaming_helper(client: OpenAI) -> None:
    with client.chat.completions.stream(model=BASE, messages=HELLO) as events:
        kinds = {event.type for event in events}
        final = events.get_final_completion()
    assert {"content.delta", "content.done"} <= kinds
    assert final.choices[0].message.content == "Hello, world!"


def test_extensions_travel_in_extra_body(client: OpenAI, engine: FakeEngine) -> None:
    extra = {"top_k": 3, "min_p": 0.1, "min_tokens": 1, "ignore_eos": False}
    client.chat.completions.create(model=BASE, messages=HELLO, extra_body=extra)
    assert engine.requests[0].sampling.top_k == 3


def test_plain_completions(client: OpenAI) -> None:
    answer = client.completions.create(model=BASE, prompt=["a", "b"], n=2, logprobs=1, echo=False)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.choices[3].text == "Hello, world!"
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["Hello", ",", " wor", "ld", "!"]
    assert logprobs.text_offset == [0, 5, 6, 10, 12]
    stream = client.completions.create(model=BASE, prompt="a", stream=True, max_tokens=2)
    chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks) == "Hello,"
    assert chunks[-1].choices[0].finish_reason == "length"


def test_models(client: OpenAI, publish: Publish) -> None:
    publish("shop")
    assert [model.id for model in client.models.list()] == [BASE, "shop", "shop@1"]
    assert client.models.retrieve("shop@1").id == "shop@1"


def test_every_refusal_is_the_exception_that_users_expect(
    client: OpenAI, engine: FakeEngine
) -> None:
    with pytest.raises(openai.NotFoundError) as not_found:
        client.chat.completions.create(model="nobody", messages=HELLO)
    assert not_found.value.code == "model_not_found"
    assert not_found.value.param == "model"
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model=BASE, messages=HELLO, temperature=3)
    assert bad.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as unsupported:
        client.chat.completions.create(model=BASE, messages=HELLO, modalities=["text", "audio"])
    assert unsupported.value.code == "unsupported_parameter"
    engine.script.refusal = EngineOverloaded("full", retry_after_s=1)
    with pytest.raises(openai.RateLimitError):
        client.chat.completions.create(model=BASE, messages=HELLO)
    engine.script.refusal = ZeroDivisionError()
    with pytest.raises(openai.InternalServerError):
        client.chat.completions.create(model=BASE, messages=HELLO)


def test_the_client_comes_back_after_overload(live: Live, engine: FakeEngine) -> None:
    engine.script.refusal = EngineOverloaded("full", retry_after_s=0.1)

    with OpenAI(base_url=live.url + "/v1", api_key="none", max_retries=2) as client:
        timer = threading.Timer(0.3, lambda: setattr(engine.script, "refusal", None))
        timer.start()
        answer = client.chat.completions.create(model=BASE, messages=HELLO)
        timer.join()
    assert answer.choices[0].message.content == "Hello, world!"


def test_an_error_in_a_stream_is_raised_where_it_is_read(
    client: OpenAI, engine: FakeEngine
) -> None:
    engine.script.fail_after = 2
    stream = client.chat.completions.create(model=BASE, messages=HELLO, stream=True)
    texts: list[str | None] = []
    with pytest.raises(openai.APIError, match="could not be generated"):
        texts.extend(chunk.choices[0].delta.content for chunk in stream)
    assert texts == ["", "Hello", ","]


def test_closing_a_stream_stops_the_generation(client: OpenAI, engine: FakeEngine) -> None:
    engine.script.is_endless = True
    engine.script.delay_s = 0.005
    engine.max_model_len = 10**6
    stream = client.chat.completions.create(model=BASE, messages=HELLO, stream=True)
    next(iter(stream))
    stream.close()
    wait_until(lambda: not engine.running)
    assert len(engine.aborted) == 1


async def test_many_async_streams_at_once(live: Live, engine: FakeEngine) -> None:
    engine.script.delay_s = 0.002

    async def one(client: AsyncOpenAI, number: int) -> str:
        stream = await client.chat.completions.create(
            model=BASE, messages=HELLO, stream=True, user=f"u{number}"
        )
        return "".join([c.choices[0].delta.content or "" async for c in stream if c.choices])

    async with AsyncOpenAI(base_url=live.url + "/v1", api_key="none") as client:
        texts = await asyncio.gather(*(one(client, i) for i in range(32)))
    assert texts == ["Hello, world!"] * 32
    assert not engine.aborted
