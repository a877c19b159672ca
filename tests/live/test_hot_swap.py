"""Sixteen streams, a hot load and an alias flip every two seconds: nothing fails, nothing mixes.

HOT_SWAP_S sets how long; the minute that LOG.md records is run with 60.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx
import pytest
from openai import AsyncOpenAI

from artifacts.base import EMBEDDED_BASE
from tests.conftest import PeftAdapter
from tests.live.conftest import LiveServer
from tests.server.engine.amx import needs_amx

SECONDS = float(os.environ.get("HOT_SWAP_S", "10"))
NUM_STREAMS = 16
FLIP_EVERY_S = 2.0
QUESTIONS = ["Where is my order 1001?", "我想退货", "Do you have tea?", "发票怎么开?"]


@dataclass
class Answered:
    """One finished stream: which version says it answered, and what it said."""

    question: str
    adapter: str
    text: str


async def ask(client: AsyncOpenAI, model: str, question: str) -> Answered:
    response = await client.chat.completions.with_raw_response.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        temperature=0,
        max_tokens=40,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    pieces: list[str] = []
    reasons: list[str] = []
    async for chunk in response.parse():
        for choice in chunk.choices:
            pieces.append(choice.delta.content or "")
            reasons += [choice.finish_reason] if choice.finish_reason else []
    assert reasons == ["length"], "exactly one end"
    return Answered(question, response.headers["x-loraloop-adapter"], "".join(pieces))


async def chat_on(client: AsyncOpenAI, index: int, until: float) -> list[Answered]:
    answers: list[Answered] = []
    while time.monotonic() < until:
        question = QUESTIONS[(index + len(answers)) % len(QUESTIONS)]
        answers.append(await ask(client, "swapped", question))
    return answers


async def swap_on(live: LiveServer, folders: list[str], until: float) -> int:
    """Hot-load the next folder as a new version and flip the alias to it, again and again."""
    num_flips = 0
    async with httpx.AsyncClient(base_url=f"{live.url}/admin/", timeout=60) as admin:
        while time.monotonic() < until:
            started = time.monotonic()
            body = {"name": "swapped", "path": folders[num_flips % len(folders)]}
            loaded = await admin.post("adapters/load", json=body)
            assert loaded.status_code == 201, loaded.text
            version = {"version": loaded.json()["version"]}
            flipped = await admin.put("adapters/swapped/aliases/champion", json=version)
            assert flipped.status_code == 200, flipped.text
            num_flips += 1
            await asyncio.sleep(max(0.0, FLIP_EVERY_S - (time.monotonic() - started)))
    return num_flips


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=needs_amx)])
async def test_no_request_fails_or_mixes_versions_while_adapters_are_swapped(
    start_live: Callable[..., LiveServer], peft_adapter: PeftAdapter, dtype: str
) -> None:
    live = start_live("--dtype", dtype)
    kernels = {"float32": "torch", "bfloat16": "amx"}[dtype]
    assert live.admin("GET", "stats").json()["engine"]["kernels"] == kernels
    folders = [str(peft_adapter(EMBEDDED_BASE, rank=2 + seed, seed=seed)) for seed in range(3)]
    first = live.admin("POST", "adapters/load", {"name": "swapped", "path": folders[-1]})
    assert first.status_code == 201, first.text

    until = time.monotonic() + SECONDS
    async with AsyncOpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
        chats = [chat_on(client, i, until) for i in range(NUM_STREAMS)]
        swapping = asyncio.create_task(swap_on(live, folders, until))
        answers = [a for some in await asyncio.gather(*chats) for a in some]
        num_flips = await swapping
        versions = sorted({a.adapter for a in answers})
        assert len(versions) >= min(num_flips, 2), "new requests follow the alias"
        # The version that a stream names alone explains every character of its answer.
        for version in versions:
            for question in QUESTIONS:
                alone = await ask(client, version, question)
                assert alone.adapter == version
                texts = {a.text for a in answers if (a.adapter, a.question) == (version, question)}
                assert texts <= {alone.text}, f"{version} on {question!r}"

    print(f"{len(answers)} answers, {num_flips} hot loads and flips, {len(versions)} versions")
    engine = live.admin("GET", "stats").json()["engine"]
    assert engine["kv_blocks_free"] == engine["kv_blocks_total"]
    assert (engine["running"], engine["waiting"]) == (0, 0)
