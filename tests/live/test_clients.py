"""Clients of a real server process that leave, or that do not read beside others that do."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from openai import AsyncOpenAI

from tests.live.conftest import LiveServer
from tests.server.clients import LEAVING, RawClient
from tests.server.conftest import wait_until

BASE = "loraloop-embedded"
ASK: dict[str, Any] = {"model": BASE, "messages": [{"role": "user", "content": "我想退货"}]}
LONG: dict[str, Any] = {**ASK, "max_tokens": 1900, "ignore_eos": True}
NUM_READERS = 8
NUM_TOKENS = 250
NUM_ROUNDS = 3


def engine(live: LiveServer) -> dict[str, Any]:
    report: dict[str, Any] = live.admin("GET", "stats").json()["engine"]
    return report


def counted(live: LiveServer, outcome: str) -> int:
    adapters = live.admin("GET", "stats").json()["adapters"]
    return int(adapters["base"][outcome]) if "base" in adapters else 0


def port(live: LiveServer) -> int:
    return int(live.url.rsplit(":", 1)[1])


def check_idle(live: LiveServer) -> None:
    wait_until(lambda: engine(live)["running"] + engine(live)["waiting"] == 0)
    before = engine(live)
    assert before["kv_blocks_free"] == before["kv_blocks_total"]
    time.sleep(0.1)
    assert engine(live)["steps"] == before["steps"]


@pytest.mark.parametrize("leave", LEAVING)
@pytest.mark.parametrize("is_stream", [True, False])
def test_a_client_that_leaves_costs_no_more_steps(
    live: LiveServer, leave: str, is_stream: bool
) -> None:
    num_aborted = counted(live, "aborted")
    client = RawClient(port(live), {**LONG, "stream": is_stream, "n": 8})
    wait_until(lambda: engine(live)["running"] == 8)
    LEAVING[leave](client)
    wait_until(lambda: counted(live, "aborted") == num_aborted + 1)
    check_idle(live)


async def read_all(client: AsyncOpenAI) -> int:
    """Chunks of one answer, read as fast as they come."""
    stream = await client.chat.completions.create(
        **{**ASK, "max_tokens": NUM_TOKENS}, stream=True, extra_body={"ignore_eos": True}
    )
    return len([chunk async for chunk in stream if chunk.choices[0].delta.content is not None])


def drain(client: RawClient) -> None:
    with contextlib.suppress(OSError):
        client.read()


async def rate(live: LiveServer, is_read: bool) -> float:
    """Answers per second of NUM_READERS clients beside one more, that reads or does not."""
    body = {**LONG, "stream": True, "logprobs": True, "top_logprobs": 20}
    beside = await asyncio.to_thread(RawClient, port(live), body, receive_buffer=4096)
    if is_read:
        threading.Thread(target=drain, args=(beside,), daemon=True).start()
    async with AsyncOpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
        began = time.perf_counter()
        await asyncio.gather(*(read_all(client) for _ in range(NUM_READERS)))
        elapsed = time.perf_counter() - began
    await asyncio.to_thread(beside.reset)
    await asyncio.to_thread(check_idle, live)
    return NUM_READERS / elapsed


async def test_a_client_that_does_not_read_slows_nobody(live: LiveServer) -> None:
    rates: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(NUM_ROUNDS):
        for is_read in (True, False):
            rates[is_read].append(await rate(live, is_read))
    reads, sleeps = (statistics.median(rates[is_read]) for is_read in (True, False))
    print(f"beside one that reads: {reads:.2f} answers/s, beside one that does not: {sleeps:.2f}")
    assert sleeps > 0.8 * reads


async def test_a_client_that_does_not_read_is_dropped_beside_others_that_do(
    start_live: Callable[..., LiveServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORALOOP_MAX_UNREAD_TOKENS", "64")
    live = start_live()
    body = {**LONG, "stream": True, "logprobs": True, "top_logprobs": 20}
    sleeps = await asyncio.to_thread(RawClient, port(live), body, receive_buffer=4096)
    async with AsyncOpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
        texts = await asyncio.gather(*(read_all(client) for _ in range(NUM_READERS)))
    assert min(texts) > NUM_TOKENS // 2, "pieces of text; a piece may hold several tokens"
    assert (counted(live, "dropped"), counted(live, "errors"), counted(live, "aborted")) == (
        1,
        0,
        0,
    )
    assert "it reads too slowly (65 tokens" in live.log.read_text()
    await asyncio.to_thread(check_idle, live)
    assert b'"slow_reader"' in sleeps.read()
