"""A prompt scored without an answer: what the engine generates all the same is not shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from server.engine.request import Delta
from server.state import AnswerStream


class ScoringStream:
    """The stream of a request for one token, without that token."""

    def __init__(self, stream: AnswerStream) -> None:
        self._stream = stream

    def listen(self, listener: Callable[[Delta], None]) -> None:
        self._stream.listen(lambda delta: listener(_bare(delta)))

    def take_ready(self) -> list[Delta]:
        return [_bare(delta) for delta in self._stream.take_ready()]

    def stop(self) -> None:
        self._stream.stop()


def _bare(delta: Delta) -> Delta:
    ended = "length" if delta.finish_reason == "stop" else delta.finish_reason
    return replace(delta, text="", token_ids=(), logprobs=(), finish_reason=ended)
