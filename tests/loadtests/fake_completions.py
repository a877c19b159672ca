"""A server that counts words as tokens and answers with as many as were asked for."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TEMPLATE_TOKENS = 7


@dataclass
class Manners:
    """How the fake behaves; ``bodies`` are the requests it got."""

    first_token_s: float = 0.02
    gap_s: float = 0.001
    refused_fields: frozenset[str] = frozenset()
    has_usage: bool = True
    has_done: bool = True
    echoes: bool = False
    num_missing: int = 0  # answers are this much shorter than asked for
    bodies: list[dict[str, Any]] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    manners: Manners

    def log_message(self, format: str, *args: object) -> None:
        """Silence."""

    def do_GET(self) -> None:
        self.reply(200, {"data": [{"id": "fake"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.manners.bodies.append(body)
        refused = self.manners.refused_fields & body.keys()
        if refused:
            self.reply(422, {"detail": f"Unexpected fields: {sorted(refused)}"})
            return
        text = body["messages"][0]["content"]
        num_new = max(body["max_tokens"] - self.manners.num_missing, 1)
        usage = {
            "prompt_tokens": len(text.split()) + TEMPLATE_TOKENS,
            "completion_tokens": num_new,
        }
        if body.get("stream"):
            self.stream(text, num_new, usage if self.manners.has_usage else None)
        else:
            self.reply(200, {"usage": usage, "choices": []})

    def reply(self, status: int, answer: object) -> None:
        payload = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def stream(self, prompt: str, num_new: int, usage: dict[str, int] | None) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.event({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
        if self.manners.echoes:
            self.event({"choices": [{"delta": {"content": f"<user>{prompt}<assistant>"}}]})
        for number in range(num_new):
            time.sleep(self.manners.gap_s if number else self.manners.first_token_s)
            self.event({"choices": [{"delta": {"content": f" w{number}"}}]})
        last: dict[str, Any] = {"choices": [{"delta": {}, "finish_reason": "length"}]}
        self.event(last | ({"usage": usage} if usage else {}))
        if self.manners.has_done:
            self.chunk(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def event(self, event: object) -> None:
        self.chunk(f"data: {json.dumps(event)}\n\n".encode())

    def chunk(self, payload: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(payload), payload))
        self.wfile.flush()


@contextmanager
def fake_completions(manners: Manners) -> Iterator[str]:
    """Its base URL, while it runs."""
    handler = type("BoundHandler", (Handler,), {"manners": manners})
    ThreadingHTTPServer.daemon_threads = True
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
