"""Clients made of bare sockets: they leave in every way, and read as little as they like."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
from collections.abc import Mapping
from typing import Any

from server.state import Server
from tests.server.conftest import Publish
from tests.server.fakes import ids_of

CHAT = "/v1/chat/completions"
HELLO: dict[str, Any] = {"model": "tiny-base", "messages": [{"role": "user", "content": "hi"}]}
LONG: dict[str, Any] = {**HELLO, "model": "tiny-llama", "max_tokens": 1000, "ignore_eos": True}
WORDY: dict[str, Any] = {**HELLO, "logprobs": True, "top_logprobs": 20}  # 2 KB a token


class RawClient:
    """One POST, sent whole. ``receive_buffer`` is in bytes; the kernel's default is large."""

    def __init__(
        self,
        port: int,
        body: Mapping[str, Any],
        *,
        headers: Mapping[str, str] | None = None,
        receive_buffer: int | None = None,
        source: str | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        self.socket = socket.socket()
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if source is not None:
            self.socket.bind((source, 0))
        self.socket.settimeout(20)
        self.socket.connect((host, port))
        self.post(body, headers)

    def post(self, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> None:
        """Send one more request on the same connection, answered or not."""
        self.socket.sendall(request_bytes(body, headers or {}))

    def read(self, until: bytes = b"") -> bytes:
        """Everything up to and with ``until``; without one, up to the end of the connection."""
        received = b""
        while not (until and until in received):
            part = self.socket.recv(65536)
            if not part:
                break
            received += part
        return received

    def reset(self) -> None:
        """Leave with RST, as a crashed client does."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def finish(self) -> None:
        """Leave with FIN, as a client that closes in order does."""
        self.socket.shutdown(socket.SHUT_WR)


def request_bytes(body: Mapping[str, Any], headers: Mapping[str, str]) -> bytes:
    content = json.dumps(body).encode()
    lines = [
        f"POST {CHAT} HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {len(content)}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


LEAVING = {"reset": RawClient.reset, "finish": RawClient.finish}


def counts(server: Server, model: str = "base") -> dict[str, Any]:
    report: dict[str, Any] = server.telemetry.report()["adapters"].get(model, {})
    return report


def num_aborted(server: Server) -> int:
    return int(counts(server).get("aborted", 0))


def is_whole_again(server: Server) -> bool:
    """Nothing runs, nothing waits, all memory is free."""
    stats = server.engine.stats()
    is_idle = stats.num_running == stats.num_waiting == server.lifecycle.num_answers == 0
    return is_idle and stats.kv_blocks_free == stats.kv_blocks_total


class SlowRenderer:
    """Tokenises until it is told to stop."""

    def __init__(self) -> None:
        self.has_begun = threading.Event()
        self.may_end = threading.Event()

    def render_prompt(self, messages: list[dict[str, Any]], **options: Any) -> list[int]:
        self.has_begun.set()
        assert self.may_end.wait(20)
        return ids_of("hi")


def load_for_ever(server: Server, publish: Publish) -> threading.Event:
    """Publishes shop@1, which never becomes ready; set once somebody waits for it."""
    publish("shop")
    is_loading = threading.Event()

    async def ensure(version: object) -> None:
        is_loading.set()
        await asyncio.Event().wait()

    adapters: Any = server.adapters
    adapters.ensure = ensure
    return is_loading
