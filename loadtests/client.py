"""One streamed chat completion over a bare socket, clocked with as little work as possible.

While an answer arrives, only the time and the bytes of each piece are kept; they are parsed when
the run is over, so that the client does not take the server's time on a small machine. Knows no
Locust.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from loadtests.sse import Answer, BrokenStream, add_event, data_fields

JSON = dict[str, Any]
PIECE_BYTES = 1 << 16


class BadAnswer(Exception):
    """The server refused, or answered something that is no completion."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"HTTP {status}: {text[:300]}")
        self.status = status


@dataclass(frozen=True)
class Endpoint:
    """Where the server is and what to ask for."""

    host: str
    port: int
    prefix: str = "/v1"
    is_tls: bool = False
    model: str = ""
    api_key: str = field(default="", repr=False)
    timeout_s: float = 600.0

    def connect(self) -> http.client.HTTPConnection:
        """An open connection, so that a run does not clock the handshake."""
        kind = http.client.HTTPSConnection if self.is_tls else http.client.HTTPConnection
        connection = kind(self.host, self.port, timeout=self.timeout_s)
        connection.connect()
        return connection

    @property
    def headers(self) -> dict[str, str]:
        sent = {"Content-Type": "application/json"}
        return sent | ({"Authorization": f"Bearer {self.api_key}"} if self.api_key else {})


@dataclass(frozen=True)
class Recording:
    """What came over the wire: (seconds since sending, bytes) per piece."""

    started: float  # time.perf_counter() of sending
    pieces: tuple[tuple[float, bytes], ...]

    @property
    def ended(self) -> float:
        """Time of the last byte, on the clock of ``started``."""
        return self.started + self.pieces[-1][0]


def parse_url(url: str, model: str = "", api_key: str = "") -> Endpoint:
    """``http://host:port`` with or without ``/v1``. Raises ValueError with the remedy."""
    parts = urlsplit(url if "//" in url else f"http://{url}")
    if parts.scheme not in ("http", "https") or parts.hostname is None:
        raise ValueError(f"--url {url!r}: write it as http://127.0.0.1:8000")
    path = parts.path.rstrip("/")
    return Endpoint(
        host=parts.hostname,
        port=parts.port or (443 if parts.scheme == "https" else 80),
        prefix=path or "/v1",
        is_tls=parts.scheme == "https",
        model=model,
        api_key=api_key,
    )


def get_json(endpoint: Endpoint, path: str) -> JSON:
    """``GET`` below the endpoint's prefix. Raises BadAnswer, OSError."""
    connection = endpoint.connect()
    try:
        connection.request("GET", endpoint.prefix + path, headers=endpoint.headers)
        return _whole(connection.getresponse())
    finally:
        connection.close()


def post_json(endpoint: Endpoint, path: str, body: JSON) -> JSON:
    """``POST`` and the whole answer. Raises BadAnswer, OSError."""
    connection = endpoint.connect()
    try:
        _send(connection, endpoint, path, body)
        return _whole(connection.getresponse())
    finally:
        connection.close()


def record(connection: http.client.HTTPConnection, endpoint: Endpoint, body: JSON) -> Recording:
    """Send one streamed chat and keep what arrives, when it arrives. Raises BadAnswer, OSError."""
    started = time.perf_counter()
    _send(connection, endpoint, "/chat/completions", body)
    response = connection.getresponse()
    if response.status != 200:
        raise BadAnswer(response.status, response.read().decode("utf-8", "replace"))
    pieces: list[tuple[float, bytes]] = []
    while piece := response.read1(PIECE_BYTES):
        pieces.append((time.perf_counter() - started, piece))
    if not pieces:
        raise BrokenStream("the answer had no body")
    return Recording(started, tuple(pieces))


def parse(recording: Recording) -> Answer:
    """The answer in a recording, each token at the time its bytes came.

    A missing ``[DONE]`` is forgiven where a finish reason came (transformers serve sends none).

    Raises:
        BrokenStream: no finish reason, or an error event.
    """
    answer, at_s = Answer(), 0.0

    def pieces() -> Iterator[bytes]:
        nonlocal at_s
        for at_s, piece in recording.pieces:  # noqa: B007  (read by the loop below)
            yield piece

    for data in data_fields(pieces()):
        if data != "[DONE]":
            add_event(answer, json.loads(data), at_s)
    if answer.finish_reason is None:
        raise BrokenStream("the stream ended without a finish_reason")
    return answer


def _send(
    connection: http.client.HTTPConnection, endpoint: Endpoint, path: str, body: JSON
) -> None:
    connection.request("POST", endpoint.prefix + path, json.dumps(body), endpoint.headers)


def _whole(response: http.client.HTTPResponse) -> JSON:
    text = response.read().decode("utf-8", "replace")
    if response.status != 200:
        raise BadAnswer(response.status, text)
    try:
        found: JSON = json.loads(text)
    except ValueError:
        raise BadAnswer(response.status, f"no JSON: {text}") from None
    return found
