"""Responses as they are written: one JSON body, or events with numbers; stored as they end.

A response is kept before its client is told that it has ended, so that the next request can go on
from it. One whose client left has ended for nobody and is not kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from server.answers.generation import Answer, Arrived
from server.answers.pieces import ParserFactory, read
from server.answers.responses.envelope import Envelope
from server.answers.responses.items import input_items, shown
from server.answers.responses.output import Event, Output, Shown
from server.answers.responses.store import ResponseStore, StoredResponse
from server.answers.streaming import Collector, Writer
from server.answers.token_text import TokenText
from server.answers.wire import encode, finite
from server.engine.request import TokenLogprob
from server.errors import ApiError
from server.schemas.responses import ResponsesRequest


@dataclass(frozen=True, slots=True)
class ResponseForm:
    """The form of a response. ``tokens`` is None where no logprobs were asked for."""

    body: ResponsesRequest
    end_tokens: frozenset[int]
    parser: ParserFactory
    tokens: TokenText | None
    store: ResponseStore
    owner: str

    @property
    def is_stream(self) -> bool:
        return bool(self.body.stream)

    def writer(self, answer: Answer) -> Writer:
        return _EventWriter(answer, self)

    def collector(self, answer: Answer) -> Collector:
        return _BodyCollector(answer, self)


class _Draft:
    """A response that is being made."""

    def __init__(self, answer: Answer, form: ResponseForm) -> None:
        self.envelope = Envelope(form.body, answer)
        self.output = Output(self._show)
        self._answer = answer
        self._form = form
        self._parser = form.parser()
        self._is_cut = False

    def add(self, arrived: Arrived) -> Iterator[Event]:
        for _, delta in arrived:
            part = read(self._parser, delta, self._form.end_tokens)
            yield from self.output.add(part)
            if part.finish_reason is not None:
                self._is_cut = part.finish_reason == "length"
                yield from self.output.end(is_cut=self._is_cut)

    @property
    def status(self) -> str:
        return "incomplete" if self._is_cut else "completed"

    def ended(self) -> str:
        """The whole response as JSON, stored if it is to be."""
        return self._kept(self.envelope.ended(self.output.items, is_cut=self._is_cut))

    def failed(self, error: ApiError) -> str:
        return self._kept(self.envelope.failed(self.output.unfinished(), error))

    def _kept(self, response: dict[str, Any]) -> str:
        body, text = self._form.body, encode(response)
        if not body.is_stored:
            return text
        stored = StoredResponse(
            id=self._answer.id,
            owner=self._form.owner,
            previous_id=body.previous_response_id,
            input=encode(shown(input_items(body.input))),
            response=text,
            created_at=self._answer.created,
        )
        return text if self._form.store.put(stored) else encode({**response, "store": False})

    def _show(self, logprobs: Sequence[TokenLogprob]) -> Shown:
        tokens = self._form.tokens
        if tokens is None:
            return []
        return [
            {
                **_entry(tokens, one.token_id, one.logprob),
                "top_logprobs": [_entry(tokens, *other) for other in one.top],
            }
            for one in logprobs
        ]


def _entry(tokens: TokenText, token_id: int, logprob: float) -> dict[str, Any]:
    text, raw = tokens.of(token_id)
    return {"token": text, "logprob": finite(logprob), "bytes": list(raw)}


class _EventWriter:
    def __init__(self, answer: Answer, form: ResponseForm) -> None:
        self._draft = _Draft(answer, form)
        self._num_written = 0

    def opening(self) -> bytes:
        response = encode(self._draft.envelope.running())
        return self._state("response.created", response) + self._state(
            "response.in_progress", response
        )

    def add(self, arrived: Arrived) -> bytes:
        return b"".join(
            self._event(event.pop("type"), encode(event)[1:]) for event in self._draft.add(arrived)
        )

    def ending(self) -> bytes:
        response = self._draft.ended()
        return self._state(f"response.{self._draft.status}", response)

    def failing(self, error: ApiError) -> bytes:
        return self._state("response.failed", self._draft.failed(error))

    def _state(self, name: str, response: str) -> bytes:
        return self._event(name, f'"response":{response}}}')

    def _event(self, name: str, rest: str) -> bytes:
        """``rest`` is JSON without the brace that opens it."""
        number = self._num_written
        self._num_written += 1
        head = f'event: {name}\ndata: {{"type":"{name}","sequence_number":{number},'
        return f"{head}{rest}\n\n".encode()


class _BodyCollector:
    def __init__(self, answer: Answer, form: ResponseForm) -> None:
        self._draft = _Draft(answer, form)

    def add(self, arrived: Arrived) -> None:
        for _ in self._draft.add(arrived):
            pass  # events are for those who watch

    def body(self) -> bytes:
        return self._draft.ended().encode()
