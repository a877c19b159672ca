"""Prompts scored on the embedded base, as lm-eval-harness asks, against transformers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import torch
from transformers import AutoModelForCausalLM

from artifacts.base import open_base
from artifacts.home import Home
from server.app import create_app
from server.assembly import build_server
from server.settings import Settings
from tests.server.conftest import serving

BASE = "loraloop-embedded"
CONTEXT, CONTINUATION = "Where is my order", " 4711? 你好，茶 ☕ was cold."


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    home = tmp_path_factory.mktemp("scoring") / "home"
    given: dict[str, Any] = {"dtype": "float32", "kv_cache_tokens": 4096, "num_threads": 1}
    server = build_server(Settings(home=home, **given), Home.open(home))
    with (
        serving(create_app(server)) as live,
        httpx.Client(base_url=live.url, timeout=60) as client,
    ):
        yield client
    server.database.close()


def tokens_of(web: httpx.Client, text: str) -> list[int]:
    return list(web.post("/tokenize", json={"prompt": text}).json()["tokens"])


def expected(ids: list[int]) -> torch.Tensor:
    """[num_tokens - 1] logprobs of each token behind the first, by transformers."""
    model = AutoModelForCausalLM.from_pretrained(open_base().path, dtype=torch.float32)
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0, :-1]
    scores: torch.Tensor = logits.log_softmax(-1)
    return scores.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_every_token_of_a_prompt_is_scored_as_transformers_scores_it(
    web: httpx.Client, max_tokens: int
) -> None:
    ids = tokens_of(web, CONTEXT + CONTINUATION)
    body = {"model": BASE, "prompt": ids, "max_tokens": max_tokens, "echo": True, "logprobs": 1}
    for _ in range(2):  # a prompt that is in the cache is scored all the same
        answer = web.post("/v1/completions", json={**body, "temperature": 0}).json()
        logprobs = answer["choices"][0]["logprobs"]
        assert len(logprobs["tokens"]) == len(logprobs["top_logprobs"]) == len(ids) + max_tokens
        assert logprobs["token_logprobs"][0] is None
        found = torch.tensor(logprobs["token_logprobs"][1 : len(ids)])
        torch.testing.assert_close(found, expected(ids), atol=2e-4, rtol=0)
        for value, top in zip(found.tolist(), logprobs["top_logprobs"][1:], strict=False):
            assert max(top.values()) >= value - 1e-6  # what lm-eval calls greedy or not
        offsets = logprobs["text_offset"][: len(ids)]
        text = answer["choices"][0]["text"]
        assert text.startswith(CONTEXT + CONTINUATION)
        assert offsets == sorted(offsets)
        assert text[offsets[-1] :].startswith(".")


def test_text_and_ids_score_alike_and_read_back(web: httpx.Client) -> None:
    text = CONTEXT + CONTINUATION
    ids = tokens_of(web, text)
    assert web.post("/detokenize", json={"tokens": ids}).json()["prompt"] == text
    body = {"model": BASE, "max_tokens": 0, "echo": True, "logprobs": 0}
    by_text, by_ids = (
        web.post("/v1/completions", json={**body, "prompt": prompt}).json()["choices"][0]
        for prompt in (text, ids)
    )
    assert by_text == by_ids


def test_a_chat_in_tokens_is_what_a_completion_of_it_costs(web: httpx.Client) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    chat = web.post("/tokenize", json={"messages": messages, "return_token_strs": True}).json()
    body = {"model": BASE, "messages": messages, "max_tokens": 1}
    usage = web.post("/v1/chat/completions", json=body).json()["usage"]
    assert usage["prompt_tokens"] == chat["count"] == len(chat["token_strs"])
