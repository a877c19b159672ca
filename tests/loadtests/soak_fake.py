"""A server that answers each request with bytes from a script, as wrong as a test wants it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

JSON = dict[str, Any]
Reply = Callable[[JSON], bytes]
VERSION = "tea@1"


def head(status: int, *headers: str) -> bytes:
    """A status line and headers; the connection ends with the answer."""
    lines = (f"HTTP/1.1 {status} Word", "Connection: close", *headers)
    return "\r\n".join((*lines, "", "")).encode()


def chunk(delta: str, finish: str | None = None, index: int = 0, **other: Any) -> bytes:
    """One event of a stream."""
    choice = {"index": index, "delta": {"content": delta}, "finish_reason": finish}
    return event({"choices": [choice], **other})


def usage(completion: int, prompt: int = 9, total: int | None = None) -> JSON:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion if total is None else total,
    }


def event(content: JSON) -> bytes:
    shared = {"id": "chatcmpl-1", "model": VERSION, "system_fingerprint": "fp_1", "created": 1}
    return b"data: " + json.dumps({**shared, **content}).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def streamed(*events: bytes, version: str = VERSION, is_cut: bool = False) -> bytes:
    """A stream of events in HTTP chunks; cut, it lacks the last one."""
    body = b"".join(b"%x\r\n%s\r\n" % (len(each), each) for each in events)
    start = head(200, "Transfer-Encoding: chunked", f"x-loraloop-adapter: {version}")
    return start + body + (b"" if is_cut else b"0\r\n\r\n")


def refused(status: int, *headers: str, shape: Sequence[str] = ()) -> bytes:
    """An error in OpenAI's shape, or with the keys of ``shape`` only."""
    keys = shape or ("message", "type", "param", "code")
    content = json.dumps({"error": dict.fromkeys(keys, "x")}).encode()
    kind = "Content-Type: application/json"
    return head(status, kind, f"Content-Length: {len(content)}", *headers) + content


@asynccontextmanager
async def fake_server(reply: Reply) -> AsyncIterator[str]:
    """Its URL. A reply of no bytes at all is a server that never answers."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = await reader.readuntil(b"\r\n\r\n")
        lengths = [s for s in asked.lower().split(b"\r\n") if s.startswith(b"content-length:")]
        body = await reader.readexactly(int(lengths[0].split(b":")[1])) if lengths else b"{}"
        answer = reply(json.loads(body))
        if not answer:
            await asyncio.sleep(60)
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
