"""A tiny OpenAI-compatible server that streams canned tokens: what the load tests are tested on."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKENS = ("Yes", ",", " ", "可以", "", ".")  # one without text: it still counts as a token


@dataclass
class Behaviour:
    """What the fake does; a test changes it before the run."""

    first_token_s: float = 0.01
    gap_s: float = 0.005
    weights: dict[str, float] = field(default_factory=lambda: {"tea@1": 70.0, "tea@2": 30.0})
    served_weights: dict[str, float] | None = None  # what it really does, if it cheats
    has_admin: bool = True
    fail_every: int = 0  # every n-th chat is a 500
    mixes_versions: bool = False  # the fingerprint changes inside one answer
    cuts_stream: bool = False  # the connection closes before [DONE]
    calls: list[tuple[str, str, Any]] = field(default_factory=list)
    champion: str = "tea@1"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else tokens arrive in lumps of 40 ms
    behaviour: Behaviour

    def log_message(self, format: str, *args: object) -> None:
        """Silence."""

    def reply(self, status: int, body: object) -> None:
        payload = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def do_GET(self) -> None:
        self.behaviour.calls.append(("GET", self.path, None))
        arms = [{"model": m, "weight": w} for m, w in self.behaviour.weights.items()]
        versions = list(self.behaviour.weights)
        row = {"requests": 1, "errors": 0, "ttft_ms": {"p50": 1.0, "p90": 77.7, "p99": 3.0}}
        memory = {
            "rss_bytes": 1 << 20,
            "rss_peak_bytes": 321 << 20,
            "torch_peak_bytes": 0,
            "kv_bytes": 64 << 20,
            "adapters": dict.fromkeys(versions, 1 << 20),
        }
        listed = [{"id": m, "root": m} for m in versions] + [{"id": "tea", "root": "tea@1"}]
        answers: dict[str, object] = {"/v1/models": {"data": listed}}
        if self.behaviour.has_admin:
            stats = {"adapters": dict.fromkeys(versions, row), "arms": {}, "memory": memory}
            answers |= {"/admin/experiments/tea": {"arms": arms}, "/admin/stats": stats}
        found = answers.get(self.path)
        self.reply(200 if found else 404, found or {"error": {"message": "no such route"}})

    def do_PUT(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.behaviour.calls.append(("PUT", self.path, body))
        self.behaviour.champion = f"tea@{body['version']}"
        self.reply(200, {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.behaviour.calls.append(("POST", self.path, body))
        if self.path != "/v1/chat/completions":
            self.reply(201, {"id": body.get("id")})
            return
        num_chats = sum(path == self.path for _, path, _ in self.behaviour.calls)
        if self.behaviour.fail_every and num_chats % self.behaviour.fail_every == 0:
            self.reply(500, {"error": {"message": "out of luck"}})
            return
        self.stream(self.pick(body))

    def pick(self, body: dict[str, Any]) -> str:
        if body["model"] != "tea":
            return str(body["model"])
        if "hotswap" in body["messages"][0]["content"]:
            return self.behaviour.champion
        weights = self.behaviour.served_weights or self.behaviour.weights
        return random.Random(body["user"]).choices(list(weights), list(weights.values()))[0]

    def stream(self, version: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("x-loraloop-adapter", version)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        deltas: list[dict[str, Any]] = [{"delta": {"role": "assistant", "content": ""}}]
        deltas += [{"delta": {"content": text}} for text in TOKENS]
        deltas.append({"delta": {}, "finish_reason": "stop"})
        for index, choice in enumerate(deltas):
            time.sleep(self.behaviour.first_token_s if index == 1 else self.behaviour.gap_s)
            mixed = self.behaviour.mixes_versions and index > 2
            event = {"choices": [choice], "system_fingerprint": "fp_b" if mixed else "fp_a"}
            self.send_event(json.dumps(event, ensure_ascii=False))
            if self.behaviour.cuts_stream and index == 3:
                self.close_connection = True
                return
        self.send_event(json.dumps({"choices": [], "usage": {"completion_tokens": len(TOKENS)}}))
        self.send_event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def send_event(self, data: str) -> None:
        payload = f"data: {data}\n\n".encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(payload), payload))
        self.wfile.flush()


class QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients may leave in the middle of a stream."""


@contextmanager
def fake_server(behaviour: Behaviour) -> Iterator[str]:
    """Its base URL, while it runs."""
    handler = type("BoundHandler", (Handler,), {"behaviour": behaviour})
    server = QuietServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
