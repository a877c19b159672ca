"""Routes that block run in worker threads, of which there are forty. Chats must not need one."""

from __future__ import annotations

import asyncio

import anyio.to_thread
import httpx
import pytest

CHAT = {"model": "tiny-base", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v1/chat/completions", 200),
        ("GET", "/admin/stats", 200),
        ("GET", "/health/ready", 503),  # this one was never started
    ],
)
async def test_a_database_that_holds_every_worker_holds_no_chat(
    web: httpx.AsyncClient, method: str, path: str, status: int
) -> None:
    workers = anyio.to_thread.current_default_thread_limiter()
    holders = [object() for _ in range(int(workers.total_tokens))]
    for holder in holders:
        workers.acquire_on_behalf_of_nowait(holder)
    try:
        async with asyncio.timeout(5):
            answer = await web.request(method, path, json=CHAT if method == "POST" else None)
    finally:
        for holder in holders:
            workers.release_on_behalf_of(holder)
    assert answer.status_code == status
