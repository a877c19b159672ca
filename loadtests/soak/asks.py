"""What the soak sends, what it sees come back, which refusals are right. Sends nothing itself."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import httpx

from loadtests.soak.answers import Broken

JSON = dict[str, Any]
CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
NOT_NOW = frozenset({429, 503})  # with Retry-After
GIVEN_UP = 408  # the deadline passed, or the client did not read
MAX_SEEN = 4000  # characters of what came, kept with a lost request


@dataclass(frozen=True)
class Ask:
    """One completion and the manner of asking for it.

    ``leave_after_s`` and ``leave_after_events``: when we go, whichever comes first.
    ``bytes_per_s``: how fast a slow reader reads. ``stall_s``: we read one piece and then nothing
    for so long. ``deadline_s``: what we allow the server.
    """

    kind: str
    body: JSON
    path: str = CHAT
    leave_after_s: float | None = None
    leave_after_events: int | None = None
    is_abrupt: bool = False  # leave by a reset
    bytes_per_s: float | None = None
    stall_s: float = 0.0
    deadline_s: float | None = None

    @property
    def model(self) -> str:
        return str(self.body["model"])

    @property
    def is_slow(self) -> bool:
        return self.bytes_per_s is not None or self.stall_s > 0

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.deadline_s is None else {"x-request-timeout": f"{self.deadline_s:g}"}

    @property
    def given_up(self) -> str | None:
        """The code of the error event with which the server may rightly end the stream."""
        if self.stall_s:
            return "slow_reader"
        return None if self.deadline_s is None else "request_timeout"

    def report(self) -> JSON:
        """What is needed to send it again."""
        return {
            "path": self.path,
            "body": self.body,
            "headers": self.headers,
            "leaves_after": [self.leave_after_s, self.leave_after_events],
            "reads": {"bytes_per_s": self.bytes_per_s, "stall_s": self.stall_s},
        }


@dataclass(frozen=True)
class Call:
    """One request that is no completion.

    ``action``: what the audit log must call it once it is done. ``is_wrong``: it must be refused.
    """

    kind: str
    method: str
    path: str
    body: JSON | bytes | None = None
    legal: frozenset[int] = frozenset()
    action: str | None = None
    is_wrong: bool = False
    version: str = ""  # what it is about: a 404 is legal once the removal has been sent

    def report(self) -> JSON:
        """What is needed to send it again."""
        body = self.body.decode("utf-8", "replace") if isinstance(self.body, bytes) else self.body
        return {"method": self.method, "path": self.path, "body": body}


@dataclass
class Seen:
    """What came back, as far as it came."""

    sent_s: float
    status: int | None = None
    headers: httpx.Headers = field(default_factory=httpx.Headers)
    pieces: list[bytes] = field(default_factory=list)
    first_token_s: float | None = None  # of a chat's stream

    def report(self) -> JSON:
        """What is kept of it with a lost request."""
        text = b"".join(self.pieces).decode("utf-8", "replace")
        wanted = ("x-request-id", "x-loraloop-adapter", "retry-after")
        headers = {name: self.headers[name] for name in wanted if name in self.headers}
        return {"status": self.status, "headers": headers, "content": text[-MAX_SEEN:]}


def check_refusal(seen: Seen, legal: frozenset[int]) -> None:
    """Raises Broken unless the refusal is a legal one, in OpenAI's shape, with its headers."""
    content = b"".join(seen.pieces)
    shown = content[:300].decode("utf-8", "replace")
    if seen.status not in legal:
        raise Broken(f"HTTP {seen.status}: {shown}")
    if seen.status in NOT_NOW and not seen.headers.get("retry-after", "").isdigit():
        raise Broken(f"HTTP {seen.status} without Retry-After: {shown}")
    error = json.loads(content).get("error")
    if not isinstance(error, dict) or set(error) != {"message", "type", "param", "code"}:
        raise Broken(f"HTTP {seen.status} with a body that is no error of OpenAI's: {shown}")


def subject_of(answer: JSON) -> str:
    """What the audit log calls the thing that an admin request changed."""
    if answer.get("object") == "alias":
        return f"{answer['name']}@{answer['alias']}"
    return str(answer["id"] if "id" in answer else answer["name"])
