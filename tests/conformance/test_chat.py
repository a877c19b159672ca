"""Chat completions as the official client reads them: whole, streamed, helped; sync, async."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tests.conformance.conftest import ASK, BASE, POET

WILD: dict[str, Any] = {"model": POET, "messages": ASK, "seed": 5, "max_tokens": 12}


def say(choice: Any) -> str:
    content = choice.message.content
    assert isinstance(content, str)
    return content


def ends_in_the_middle(client: OpenAI) -> str:
    """A stop string of the wild answer; the helper raises for answers that "length" ends."""
    text = say(client.chat.completions.create(**WILD).choices[0])
    return text[len(text) // 2 :][:2]


def test_an_answer_has_every_field_of_openais_type(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=BASE, messages=ASK, max_tokens=6, temperature=0)
    assert ChatCompletion.model_validate(answer.to_dict(), strict=True) == answer
    assert answer.id.startswith("chatcmpl-")
    assert answer.object == "chat.completion"
    assert answer.model == BASE
    assert answer.system_fingerprint
    [choice] = answer.choices
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "length", None)
    assert choice.message.role == "assistant"
    assert choice.message.refusal is None
    assert choice.message.tool_calls is None
    usage = answer.usage
    assert usage is not None
    assert usage.completion_tokens == 6
    assert usage.total_tokens == usage.prompt_tokens + 6
    assert usage.prompt_tokens_details is not None
    assert usage.completion_tokens_details is not None


def test_a_stream_is_chunks_of_one_answer(client: OpenAI) -> None:
    options: Any = {"include_usage": True}
    stream = client.chat.completions.create(**WILD, n=2, stream=True, stream_options=options)
    chunks = list(stream)
    for chunk in chunks:
        assert ChatCompletionChunk.model_validate(chunk.to_dict(), strict=True) == chunk
    heads = {(c.id, c.created, c.model, c.object, c.system_fingerprint) for c in chunks}
    assert len(heads) == 1
    *others, last = chunks
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 24
    assert all(chunk.usage is None for chunk in others)
    for index in (0, 1):
        own = [choice for chunk in others for choice in chunk.choices if choice.index == index]
        assert own[0].delta.role == "assistant"
        assert [choice.finish_reason for choice in own if choice.finish_reason] == ["length"]
        assert own[-1].finish_reason == "length"
        assert own[-1].delta.content is None


def test_the_helper_gathers_what_a_whole_answer_says(client: OpenAI) -> None:
    ends = {**WILD, "logprobs": True, "top_logprobs": 2, "stop": ends_in_the_middle(client)}
    whole = client.chat.completions.create(**ends)
    with client.chat.completions.stream(**ends) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    assert say(final.choices[0]) == say(whole.choices[0])
    assert final.choices[0].logprobs == whole.choices[0].logprobs
    assert final.choices[0].finish_reason == whole.choices[0].finish_reason
    deltas = [event.delta for event in events if event.type == "content.delta"]
    assert "".join(deltas) == say(whole.choices[0])
    [done] = [event for event in events if event.type == "content.done"]
    assert done.content == say(whole.choices[0])
    [scores] = [event for event in events if event.type == "logprobs.content.done"]
    assert whole.choices[0].logprobs is not None
    assert scores.content == whole.choices[0].logprobs.content


async def test_the_async_client_reads_the_same(client: OpenAI, async_client: AsyncOpenAI) -> None:
    ends: dict[str, Any] = {**WILD, "stop": ends_in_the_middle(client)}
    text = say(client.chat.completions.create(**ends).choices[0])

    async def whole() -> str:
        return say((await async_client.chat.completions.create(**ends)).choices[0])

    async def streamed() -> str:
        stream: Any = await async_client.chat.completions.create(**ends, stream=True)
        return "".join([c.choices[0].delta.content or "" async for c in stream if c.choices])

    async def helped() -> str:
        async with async_client.chat.completions.stream(**ends) as stream:
            return say((await stream.get_final_completion()).choices[0])

    texts = await asyncio.gather(*(each() for each in (whole, streamed, helped) * 3))
    assert texts == [text] * 9


def test_logprobs_are_of_every_token_and_of_its_rivals(client: OpenAI) -> None:
    greedy: dict[str, Any] = {**WILD, "temperature": 0}
    choice = client.chat.completions.create(**greedy, logprobs=True, top_logprobs=20).choices[0]
    assert choice.logprobs is not None
    content = choice.logprobs.content
    assert content is not None
    assert len(content) == 12
    raw = b"".join(bytes(entry.bytes or []) for entry in content)
    assert raw.decode("utf-8", "replace") == say(choice)
    for entry in content:
        assert len(entry.top_logprobs) == 20
        values = [rival.logprob for rival in entry.top_logprobs]
        assert values == sorted(values, reverse=True)
        assert entry.logprob == values[0]  # greedy takes the best
        assert sum(map(math.exp, values)) <= 1 + 1e-4
    bare = client.chat.completions.create(**greedy, logprobs=True).choices[0]
    assert bare.logprobs is not None
    assert bare.logprobs.content is not None
    assert [entry.top_logprobs for entry in bare.logprobs.content] == [[]] * 12


def test_choices_differ_and_a_seed_repeats_them(client: OpenAI) -> None:
    one, two = (client.chat.completions.create(**WILD, n=3) for _ in range(2))
    assert [choice.index for choice in one.choices] == [0, 1, 2]
    texts = [say(choice) for choice in one.choices]
    assert texts == [say(choice) for choice in two.choices]
    assert len(set(texts)) == 3
    assert one.system_fingerprint == two.system_fingerprint
    base = client.chat.completions.create(**{**WILD, "model": BASE})
    assert base.system_fingerprint != one.system_fingerprint  # other weights
    assert one.id != two.id


def test_a_stop_string_ends_an_answer_before_it(client: OpenAI) -> None:
    text = say(client.chat.completions.create(**WILD).choices[0])
    stop = text[4:6]
    for given in (stop, ["\x00never", stop]):
        choice = client.chat.completions.create(**WILD, stop=given).choices[0]
        assert say(choice) == text[: text.index(stop)]
        assert choice.finish_reason == "stop"


def test_a_known_prefix_is_in_usage(client: OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "tell me of oolong, please. " * 12}]

    def cached(**fields: Any) -> int:
        answer = client.chat.completions.create(
            model=BASE, messages=messages, max_tokens=1, extra_body=fields
        )
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        assert answer.usage.prompt_tokens_details.cached_tokens is not None
        return answer.usage.prompt_tokens_details.cached_tokens

    assert cached() == 0
    again = cached()
    assert again >= 16
    assert cached(cache_salt="someone else") == 0
    assert cached(cache_salt="someone else") == again
    assert cached(cache_salt="a third") == 0
    assert cached() == again


def test_biases_ban_and_force(client: OpenAI) -> None:
    greedy: dict[str, Any] = {**WILD, "temperature": 0, "logprobs": True}

    def tokens(**fields: Any) -> list[str]:
        choice = client.chat.completions.create(**greedy, **fields).choices[0]
        assert choice.logprobs is not None
        assert choice.logprobs.content is not None
        return [entry.token for entry in choice.logprobs.content]

    forced = tokens(logit_bias={"300": 100})
    assert len(set(forced)) == 1
    assert forced[0] not in tokens()
    every_other = {str(token): -100 for token in range(1000, 2024)}
    assert tokens(logit_bias=every_other)


def test_metadata_and_user_change_nothing(client: OpenAI) -> None:
    plain = client.chat.completions.create(**WILD)
    noted = client.chat.completions.create(
        **WILD,
        user="u-17",
        metadata={"team": "前端 🦊"},
        safety_identifier="s",
        prompt_cache_key="k",
        service_tier="auto",
        modalities=["text"],
        store=False,
        tools=[],
        response_format={"type": "text"},
    )
    assert say(noted.choices[0]) == say(plain.choices[0])


def test_raw_responses_show_headers_and_parse(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(**WILD)
    assert raw.headers["x-request-id"]
    assert raw.headers["content-type"] == "application/json"
    assert raw.headers["x-loraloop-adapter"] == "poet@1"
    parsed = raw.parse()
    assert parsed.id.startswith("chatcmpl-")
    assert parsed._request_id == raw.headers["x-request-id"]
    with client.chat.completions.with_streaming_response.create(**WILD, stream=True) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert all(line.startswith("data: ") for line in lines)


def test_a_deadline_of_the_client_is_kept(client: Any) -> None:
    long: dict[str, Any] = {**WILD, "max_tokens": 1500, "extra_body": {"ignore_eos": True}}
    with pytest.raises(openai.APITimeoutError):
        client.chat.completions.create(**long, timeout=httpx.Timeout(5, read=0.05))
    with pytest.raises(openai.APIStatusError) as late:
        client.chat.completions.create(**long, extra_headers={"x-request-timeout": "0.05"})
    assert late.value.status_code == 408
    assert late.value.code == "request_timeout"
