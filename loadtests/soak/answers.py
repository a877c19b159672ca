"""Is this a complete answer? Streams and bodies of completions, held against what was asked.

A complete answer has one finish reason for each choice and nothing of the choice behind it, one
id, model and fingerprint throughout, exactly one ``[DONE]`` at the very end of a stream, and a
usage that adds up. Pure: bytes in, `Answer` out, or `Broken` with the reason.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from loadtests.sse import data_fields

JSON = dict[str, Any]
DONE = "[DONE]"
FINISH_REASONS = ("stop", "length")
CONSTANT = ("id", "model", "system_fingerprint", "created")


class Broken(Exception):
    """What came is no complete answer to what was asked."""


class ErrorEvent(Broken):
    """The stream carried an error. ``code`` is its code."""

    def __init__(self, error: JSON) -> None:
        super().__init__(f"error event: {json.dumps(error, ensure_ascii=False)}")
        self.code = error.get("code")


@dataclass
class Choice:
    """One choice: its text, and how it ended."""

    text: str = ""
    finish_reason: str | None = None


@dataclass
class Answer:
    """A complete answer, whichever way it came."""

    head: JSON = field(default_factory=dict)  # the CONSTANT fields
    choices: dict[int, Choice] = field(default_factory=dict)
    usage: JSON | None = None

    @property
    def texts(self) -> list[str]:
        """The choices' texts, by index."""
        return [self.choices[index].text for index in sorted(self.choices)]

    def start(self, event: JSON) -> None:
        """Take the fields that no event may change."""
        head = {key: event.get(key) for key in CONSTANT}
        if self.head and head != self.head:
            raise Broken(f"one answer from two: {self.head} and {head}")
        self.head = head

    def add(self, index: int, text: str, finish_reason: str | None) -> None:
        """A piece of one choice. Raises Broken if the choice had ended."""
        choice = self.choices.setdefault(index, Choice())
        if choice.finish_reason is not None:
            what = "a second finish_reason" if finish_reason is not None else "text"
            raise Broken(f"choice {index} got {what} after its finish_reason")
        choice.text += text
        choice.finish_reason = finish_reason


def read_stream(pieces: Iterable[bytes], body: JSON) -> Answer:
    """The answer in the bytes of a stream, checked against the ``body`` that asked for it.

    Raises:
        Broken: cut, an error event, something missing or something twice.
    """
    answer, is_done = Answer(), False
    for data in data_fields(pieces):
        if is_done:
            raise Broken(f"{data[:80]!r} came after [DONE]")
        if data == DONE:
            is_done = True
            continue
        event = json.loads(data)
        if "error" in event:
            raise ErrorEvent(event["error"])
        answer.start(event)
        for choice in event["choices"]:
            text = choice["delta"].get("content") if "delta" in choice else choice["text"]
            answer.add(choice["index"], text or "", choice["finish_reason"])
        _take_usage(answer, event)
    if not is_done:
        raise Broken("the stream ended without [DONE]")
    wants_usage = bool((body.get("stream_options") or {}).get("include_usage"))
    if wants_usage and answer.usage is None:
        raise Broken("the stream carried no usage, which was asked for")
    check(answer, body)
    return answer


def read_body(content: JSON, body: JSON) -> Answer:
    """The answer in a whole body. Raises Broken."""
    answer = Answer()
    answer.start(content)
    for choice in content["choices"]:
        text = choice["message"]["content"] if "message" in choice else choice["text"]
        answer.add(choice["index"], text, choice["finish_reason"])
    answer.usage = content.get("usage")
    if answer.usage is None:
        raise Broken("the answer carries no usage")
    check(answer, body)
    return answer


def check(answer: Answer, body: JSON) -> None:
    """Raises Broken unless every choice that ``body`` asks for ended once and the usage adds up."""
    wanted = body.get("n", 1)
    if sorted(answer.choices) != list(range(wanted)):
        raise Broken(f"asked for {wanted} choices, got {sorted(answer.choices)}")
    for index, choice in answer.choices.items():
        if choice.finish_reason not in FINISH_REASONS:
            raise Broken(f"choice {index} ended with finish_reason {choice.finish_reason!r}")
        if body.get("ignore_eos") and "stop" not in body and choice.finish_reason != "length":
            raise Broken(f"choice {index} ignores the end token and yet ended with 'stop'")
    if answer.usage is not None:
        _check_usage(answer, body)


def _take_usage(answer: Answer, event: JSON) -> None:
    usage = event.get("usage")
    if usage is None:
        return
    if answer.usage is not None:
        raise Broken("two chunks carry usage")
    if event["choices"]:
        raise Broken("a chunk with choices carries usage")
    answer.usage = usage


def _check_usage(answer: Answer, body: JSON) -> None:
    assert answer.usage is not None
    counts = {key: answer.usage[f"{key}_tokens"] for key in ("prompt", "completion", "total")}
    if counts["prompt"] + counts["completion"] != counts["total"] or counts["prompt"] < 1:
        raise Broken(f"the usage does not add up: {answer.usage}")
    most, reasons = body["max_tokens"], [c.finish_reason for c in answer.choices.values()]
    # Each choice that was cut has all its tokens; one that stopped has between one and all.
    least = sum(most if reason == "length" else 1 for reason in reasons)
    if not least <= counts["completion"] <= most * len(reasons):
        raise Broken(f"{counts['completion']} tokens for {reasons} at max_tokens {most}")
