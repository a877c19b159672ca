"""The output of a response as it grows: items, and the events that tell of them.

Knows no HTTP. One item is open at a time; a piece of another kind ends it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from server.answers.pieces import CallArguments, CallBegun, Part, Piece, Said, Thought
from server.answers.responses.items import Item, new_id
from server.engine.request import TokenLogprob

Event = dict[str, Any]  # without its sequence_number
Shown = list[dict[str, Any]]  # log-probabilities as the API shows them
ShowLogprobs = Callable[[Sequence[TokenLogprob]], Shown]


@dataclass(slots=True)
class TextItem:
    """A message of the assistant: one part of text."""

    index: int
    id: str = field(default_factory=lambda: new_id("message"))
    texts: list[str] = field(default_factory=list)
    logprobs: Shown = field(default_factory=list)

    def begin(self) -> Iterator[Event]:
        yield _added(self.index, {**self.item("in_progress"), "content": []})
        yield self._event("response.content_part.added", part=self._part())

    def add(self, text: str, logprobs: Shown) -> Event:
        self.texts.append(text)
        self.logprobs += logprobs
        return self._event("response.output_text.delta", delta=text, logprobs=logprobs)

    def end(self, status: str) -> Iterator[Event]:
        text = "".join(self.texts)
        yield self._event("response.output_text.done", text=text, logprobs=self.logprobs)
        yield self._event("response.content_part.done", part=self._part())
        yield _done(self.index, self.item(status))

    def item(self, status: str) -> Item:
        content = [self._part()]
        head = {"id": self.id, "type": "message", "status": status, "role": "assistant"}
        return {**head, "content": content}

    def _part(self) -> dict[str, Any]:
        text = "".join(self.texts)
        return {"type": "output_text", "annotations": [], "logprobs": self.logprobs, "text": text}

    def _event(self, event: str, **fields: Any) -> Event:
        place = {"item_id": self.id, "output_index": self.index, "content_index": 0}
        return {"type": event, **place, **fields}


@dataclass(slots=True)
class ThoughtItem:
    """What the model thought, whole: there is no summary."""

    index: int
    id: str = field(default_factory=lambda: new_id("reasoning"))
    texts: list[str] = field(default_factory=list)

    def begin(self) -> Iterator[Event]:
        yield _added(self.index, {**self.item("in_progress"), "content": []})
        yield self._event("response.content_part.added", part=self._part())

    def add(self, text: str) -> Event:
        self.texts.append(text)
        return self._event("response.reasoning_text.delta", delta=text)

    def end(self, status: str) -> Iterator[Event]:
        yield self._event("response.reasoning_text.done", text="".join(self.texts))
        yield self._event("response.content_part.done", part=self._part())
        yield _done(self.index, self.item(status))

    def item(self, status: str) -> Item:
        head: Item = {"id": self.id, "type": "reasoning", "status": status, "summary": []}
        return {**head, "content": [self._part()], "encrypted_content": None}

    def _part(self) -> dict[str, Any]:
        return {"type": "reasoning_text", "text": "".join(self.texts)}

    def _event(self, event: str, **fields: Any) -> Event:
        place = {"item_id": self.id, "output_index": self.index, "content_index": 0}
        return {"type": event, **place, **fields}


@dataclass(slots=True)
class FunctionCall:
    """A call of a function."""

    index: int
    call_id: str
    name: str
    id: str = field(default_factory=lambda: new_id("function_call"))
    texts: list[str] = field(default_factory=list)

    def begin(self) -> Iterator[Event]:
        yield _added(self.index, self.item("in_progress"))

    def add(self, text: str) -> Event:
        self.texts.append(text)
        return self._event("response.function_call_arguments.delta", delta=text)

    def end(self, status: str) -> Iterator[Event]:
        arguments = "".join(self.texts)
        yield self._event("response.function_call_arguments.done", arguments=arguments)
        yield _done(self.index, self.item(status))

    def item(self, status: str) -> Item:
        head = {"id": self.id, "type": "function_call", "status": status}
        arguments = "".join(self.texts)
        return {**head, "call_id": self.call_id, "name": self.name, "arguments": arguments}

    def _event(self, event: str, **fields: Any) -> Event:
        return {"type": event, "item_id": self.id, "output_index": self.index, **fields}


class Output:
    """The items of one answer. Events must be taken as they are made."""

    def __init__(self, show_logprobs: ShowLogprobs) -> None:
        self.items: list[Item] = []  # those that have ended
        self._show = show_logprobs
        self._open: TextItem | ThoughtItem | FunctionCall | None = None
        self._held: Shown = []  # of text that is held back

    def add(self, part: Part) -> Iterator[Event]:
        """What has been understood of the answer's text."""
        if self._is_of_text(part):
            self._held += self._show(part.logprobs)
        for piece in part.pieces:
            yield from self._add(piece)
        if part.pieces and not isinstance(part.pieces[-1], Said):
            self._held = []

    def end(self, *, is_cut: bool) -> Iterator[Event]:
        """Nothing follows; ``is_cut`` says that something should have."""
        if self._open is None and not self.items and not is_cut:
            yield from self._begin(TextItem(0))  # an answer of no words is an answer
        yield from self._end("incomplete" if is_cut else "completed")

    def unfinished(self) -> list[Item]:
        """All items, the open one as it is."""
        return self.items + ([] if self._open is None else [self._open.item("incomplete")])

    def _add(self, piece: Piece) -> Iterator[Event]:
        match piece:
            case Said(text):
                yield from self._say(text)
            case Thought(text):
                if not isinstance(self._open, ThoughtItem):
                    yield from self._begin(ThoughtItem(self._next_index()))
                assert isinstance(self._open, ThoughtItem)
                yield self._open.add(text)
            case CallBegun(_, id_, name):
                yield from self._begin(FunctionCall(self._next_index(), id_, name))
            case CallArguments(_, text):
                assert isinstance(self._open, FunctionCall)
                yield self._open.add(text)

    def _is_of_text(self, part: Part) -> bool:
        """Whether its tokens are the text's; those without a piece may be held back of it."""
        if part.pieces:
            return any(isinstance(piece, Said) for piece in part.pieces)
        return not isinstance(self._open, ThoughtItem | FunctionCall)

    def _say(self, text: str) -> Iterator[Event]:
        if not isinstance(self._open, TextItem):
            yield from self._begin(TextItem(self._next_index()))
        assert isinstance(self._open, TextItem)
        logprobs, self._held = self._held, []
        yield self._open.add(text, logprobs)

    def _next_index(self) -> int:
        return len(self.items) + (self._open is not None)

    def _begin(self, item: TextItem | ThoughtItem | FunctionCall) -> Iterator[Event]:
        yield from self._end("completed")
        self._open = item
        yield from item.begin()

    def _end(self, status: str) -> Iterator[Event]:
        item = self._open
        if item is None:
            return
        if isinstance(item, TextItem) and self._held:
            yield item.add("", self._held)
            self._held = []
        self._open = None
        yield from item.end(status)
        self.items.append(item.item(status))


def _added(index: int, item: Item) -> Event:
    return {"type": "response.output_item.added", "output_index": index, "item": item}


def _done(index: int, item: Item) -> Event:
    return {"type": "response.output_item.done", "output_index": index, "item": item}
