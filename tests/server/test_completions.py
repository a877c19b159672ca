"""POST /v1/completions: prompts of all forms, shown and scored."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from server.answers.completion_wire import CompletionWire, Echo
from server.answers.pieces import Part, Said
from server.answers.token_text import TokenText
from server.engine.request import TokenLogprob
from tests.server.fakes import FIRST_ID, FakeEngine, ids_of

TEXT = "/v1/completions"
PLAIN: dict[str, Any] = {"model": "tiny-base", "prompt": "hi"}
IDS = [FIRST_ID, FIRST_ID + 1, FIRST_ID + 5]  # "Hello", ",", " 你好"


async def complete(web: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    response = await web.post(TEXT, json={**PLAIN, **fields})
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


async def streamed(web: httpx.AsyncClient, **fields: Any) -> list[dict[str, Any]]:
    response = await web.post(TEXT, json={**PLAIN, **fields, "stream": True})
    events = response.text.removesuffix("\n\n").split("\n\n")
    assert events[-1] == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events[:-1]]


@pytest.mark.parametrize(
    ("prompt", "ids", "texts"),
    [
        ("hi", ids_of("hi"), ["hi"]),
        (["a b", "c"], ids_of("a b"), ["a b", "c"]),
        (IDS, IDS, ["Hello, 你好"]),
        ([IDS, [FIRST_ID]], IDS, ["Hello, 你好", "Hello"]),
    ],
)
async def test_echo_begins_each_answer_with_its_prompt(
    web: httpx.AsyncClient, engine: FakeEngine, prompt: Any, ids: list[int], texts: list[str]
) -> None:
    choices = (await complete(web, prompt=prompt, echo=True, n=2, max_tokens=1))["choices"]
    assert [choice["text"] for choice in choices] == [t + "Hello" for t in texts for _ in "12"]
    assert [choice["index"] for choice in choices] == list(range(2 * len(texts)))
    assert list(engine.requests[0].prompt_ids) == ids
    assert engine.requests[0].sampling.prompt_logprobs is None


async def test_echo_with_logprobs_scores_the_prompt_too(web: httpx.AsyncClient) -> None:
    body = await complete(web, prompt=IDS, echo=True, logprobs=1, max_tokens=2)
    choice = body["choices"][0]
    assert choice["text"] == "Hello, 你好Hello,"
    assert choice["logprobs"]["tokens"] == ["Hello", ",", " 你好", "Hello", ","]
    assert choice["logprobs"]["token_logprobs"] == [None, -2.0, -2.0, -0.5, -0.5]
    assert choice["logprobs"]["top_logprobs"][:2] == [None, {",": -2.0}]
    assert choice["logprobs"]["text_offset"] == [0, 5, 6, 9, 14]
    assert body["usage"]["completion_tokens"] == 2


async def test_max_tokens_0_scores_the_prompt_and_shows_nothing_else(
    web: httpx.AsyncClient, engine: FakeEngine
) -> None:
    body = await complete(web, prompt=IDS, echo=True, logprobs=0, max_tokens=0)
    choice = body["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("Hello, 你好", "length")
    assert choice["logprobs"]["token_logprobs"] == [None, -2.0, -2.0]
    assert body["usage"]["completion_tokens"] == 0
    assert engine.requests[0].sampling.max_tokens == 1
    body = await complete(web, prompt="hi", echo=True, max_tokens=0)
    assert body["choices"][0]["text"] == "hi"
    assert body["choices"][0]["logprobs"] is None


async def test_one_logprob_for_each_token_even_if_the_last_one_ends_the_answer(
    web: httpx.AsyncClient, engine: FakeEngine
) -> None:
    """lm-eval asks for one token and cuts its entry off, whatever token it is."""
    engine.script.tokens = ()
    body = await complete(web, prompt=IDS, echo=True, logprobs=1, max_tokens=1)
    choice = body["choices"][0]
    assert choice["logprobs"]["token_logprobs"] == [None, -2.0, -2.0, -0.5]
    assert (choice["text"], choice["finish_reason"]) == ("Hello, 你好", "stop")
    plain = (await complete(web, prompt=IDS, logprobs=1))["choices"][0]
    assert plain["logprobs"] == {name: [] for name in choice["logprobs"]}


async def test_a_streamed_echo_comes_first_and_once(web: httpx.AsyncClient) -> None:
    chunks = await streamed(web, prompt=["ab", "cd"], echo=True, max_tokens=3)
    texts = {0: "", 1: ""}
    for chunk in chunks:
        (choice,) = chunk["choices"]
        texts[choice["index"]] += choice["text"]
    assert texts == {0: "abHello, wor", 1: "cdHello, wor"}
    chunks = await streamed(web, prompt=IDS, echo=True, logprobs=1, max_tokens=3)
    scored: list[float | None] = []
    offsets: list[int] = []
    for chunk in chunks:
        logprobs = chunk["choices"][0]["logprobs"] or {"token_logprobs": [], "text_offset": []}
        scored += logprobs["token_logprobs"]
        offsets += logprobs["text_offset"]
    assert scored == [None, -2.0, -2.0, -0.5, -0.5, -0.5]
    assert offsets == [0, 5, 6, 9, 14, 15]
    scoring = await streamed(web, prompt="ab", echo=True, max_tokens=0)
    assert "".join(chunk["choices"][0]["text"] for chunk in scoring) == "ab"
    assert scoring[-1]["choices"][0]["finish_reason"] == "length"


class Bytes:
    """A vocabulary with a mark, half a character each way, and two tokens that read alike."""

    names = ("<s>", "a", "Ġ", "é", "b", "b")
    raw = (b"<s>", b"a", b"\xe4\xbd", b"\xa0", b"b", b"b")

    def of(self, token_id: int) -> tuple[str, tuple[int, ...]]:
        return self.names[token_id], tuple(self.raw[token_id])


def test_offsets_count_characters_and_no_mark_that_is_not_in_the_text() -> None:
    tokens: TokenText = Bytes()  # type: ignore[assignment]
    wire = CompletionWire(tokens, (Echo("a你b", 0),))
    scored = (None, *(TokenLogprob(token, -1.0) for token in (1, 2, 3, 4)))
    (choice,) = wire.part(0, Part((Said("!"),), (), scored))
    assert choice["logprobs"]["text_offset"] == [0, 0, 1, 1, 2]
    assert choice["text"] == "a你b!"
    wire = CompletionWire(tokens, (Echo("<s>a", 0),))  # from ids, which show their marks
    (choice,) = wire.part(0, Part((), (), scored[:2]))
    assert choice["logprobs"]["text_offset"] == [0, 3]


def test_tokens_that_read_alike_hide_no_better_one() -> None:
    """lm-eval calls a token greedy if nothing in top_logprobs is above it."""
    wire = CompletionWire(Bytes())  # type: ignore[arg-type]
    (choice,) = wire.part(0, Part((), (TokenLogprob(4, -1.0, ((5, -0.5), (4, -1.0))),)))
    assert choice["logprobs"]["top_logprobs"] == [{"b": -0.5}]


async def test_special_tokens_are_left_out_where_asked(
    web: httpx.AsyncClient, fake_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    tokenizer = fake_server.base.tokenizer
    encode = tokenizer.encode_batch_fast

    def spying(texts: list[str], add_special_tokens: bool = True) -> Any:
        asked.append(add_special_tokens)
        return encode(texts)

    monkeypatch.setattr(type(tokenizer), "encode_batch_fast", staticmethod(spying))
    for fields in ({}, {"add_special_tokens": None}, {"add_special_tokens": False}):
        await complete(web, **fields)
    assert asked == [True, True, False]
