"""Reads one streamed chat completion and clocks its tokens. Knows no Locust.

A token counts when its event arrives, even if its text is empty; the opening event that only names
the role does not count. Specification: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

JSON = dict[str, Any]
TOKEN_KEYS = ("content", "reasoning_content", "tool_calls")


class BrokenStream(Exception):
    """The stream ended early, carried an error, or contradicted itself."""


@dataclass
class Answer:
    """One streamed answer as the client saw it. Times in seconds since the request was sent."""

    text: str = ""
    ttft_s: float | None = None  # set by the first token
    token_times_s: list[float] = field(default_factory=list)
    num_tokens: int = 0  # from usage; else the number of events with a token
    finish_reason: str | None = None
    fingerprint: str | None = None
    num_prompt_tokens: int | None = None  # from usage only
    is_counted: bool = False  # num_tokens is from usage

    @property
    def gaps_s(self) -> list[float]:
        """Time between neighbouring tokens."""
        pairs = itertools.pairwise(self.token_times_s)
        return [later - earlier for earlier, later in pairs]


def data_fields(chunks: Iterable[bytes]) -> Iterator[str]:
    """The ``data`` of each event in a byte stream cut at arbitrary places."""
    rest, lines = b"", list[str]()
    for chunk in chunks:
        *complete, rest = (rest + chunk).replace(b"\r\n", b"\n").split(b"\n")
        for raw in complete:
            line = raw.decode("utf-8")
            if line.startswith("data:"):
                lines.append(line[5:].removeprefix(" "))
            elif not line and lines:
                yield "\n".join(lines)
                lines = []


def read_answer(chunks: Iterable[bytes], started: float) -> Answer:
    """Read to ``[DONE]``; ``started`` is the ``time.perf_counter()`` of sending.

    Raises:
        BrokenStream: no ``[DONE]``, no finish reason, an error event, or two fingerprints.
    """
    answer, is_done = Answer(), False
    for data in data_fields(chunks):
        if data == "[DONE]":
            is_done = True  # read on: the connection is only free again at the very end
        elif not is_done:
            add_event(answer, json.loads(data), time.perf_counter() - started)
    if not is_done:
        raise BrokenStream("the stream ended without [DONE]")
    if answer.finish_reason is None:
        raise BrokenStream("the stream ended without a finish_reason")
    return answer


def add_event(answer: Answer, event: JSON, at_s: float) -> None:
    """Fold one event into the answer."""
    if "error" in event:
        raise BrokenStream(f"error in the stream: {json.dumps(event['error'], ensure_ascii=False)}")
    fingerprint = event.get("system_fingerprint")
    if fingerprint is not None and answer.fingerprint not in (None, fingerprint):
        raise BrokenStream(f"one answer from two versions: {answer.fingerprint}, {fingerprint}")
    answer.fingerprint = answer.fingerprint if fingerprint is None else fingerprint
    for choice in event.get("choices") or []:
        delta = choice.get("delta") or {}
        if has_token(delta):
            answer.token_times_s.append(at_s)
            answer.num_tokens += 1
            answer.ttft_s = at_s if answer.ttft_s is None else answer.ttft_s
            answer.text += delta.get("content") or ""
        if choice.get("finish_reason") is not None:
            answer.finish_reason = choice["finish_reason"]
    usage = event.get("usage")
    if usage is not None:
        answer.num_tokens, answer.is_counted = usage["completion_tokens"], True
        answer.num_prompt_tokens = usage.get("prompt_tokens")


def has_token(delta: JSON) -> bool:
    """Whether a delta stands for at least one token; ``{"role": …, "content": ""}`` does not."""
    if "role" in delta:
        return any(delta.get(key) for key in TOKEN_KEYS)
    return any(delta.get(key) is not None for key in TOKEN_KEYS)
