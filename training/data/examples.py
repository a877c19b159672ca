"""Records to token ids with labels, through the renderer that also serves. No torch.

The loss falls on assistant tokens, and on every token of plain text. A row longer than
``max_length`` loses its tail or becomes several windows; one whose replies lie wholly in a lost
tail is left out. All of it is counted, nothing is silent.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from artifacts.chat import ChatRenderer
from artifacts.errors import InvalidChat
from training.data.records import Conversation, PlainText, PreferencePair, Record
from training.data.rows import BadRow
from training.data.windows import IGNORED, check_overlap, cut_windows

__all__ = [
    "IGNORED",
    "Example",
    "Rendered",
    "RowRenderer",
    "Shape",
    "example_hash",
    "lengths_of",
    "render_examples",
    "row_identity",
]


@dataclass(frozen=True, slots=True)
class Example:
    """Tokens to learn. ``labels[i]`` is ``input_ids[i]`` where the loss falls, else IGNORED.

    ``row`` counts the records that were rendered, from 0: windows of one row share it. ``source``
    is the record's; ``kind`` a hash of what inverse-frequency sampling counts, 0 without it.
    """

    input_ids: Sequence[int]
    labels: Sequence[int]
    row: int = 0
    source: int = 0
    kind: int = 0

    @property
    def num_targets(self) -> int:
        """Predicted tokens: position 0 has nothing before it to be predicted from."""
        return len(self.labels) - 1 - list(self.labels[1:]).count(IGNORED)


@dataclass(frozen=True, slots=True)
class Shape:
    """The form that rows take as tokens."""

    max_length: int
    long_rows: Literal["truncate", "window"] = "truncate"
    window_overlap: int = 64
    counts_kinds: bool = False
    kind_column: str | None = None  # None: the reply is the kind
    objective: Literal["sft", "dpo"] = "sft"

    def __post_init__(self) -> None:
        if self.long_rows == "window":
            check_overlap(self.window_overlap, self.max_length)


@dataclass(frozen=True, slots=True)
class Rendered:
    """Examples in the order of their rows, and what happened to the rest."""

    examples: list[Example]
    bad: list[BadRow]
    num_truncated: int
    num_too_long: int  # left out: no reply within max_length
    num_windowed: int  # rows that became several examples
    num_undesirable: int  # left out: KTO rows that say how not to answer


class RowRenderer:
    """Renders record after record, and counts what became of them."""

    def __init__(self, renderer: ChatRenderer, shape: Shape) -> None:
        self._renderer = renderer
        self._shape = shape
        self._num_rows = 0
        self.num_truncated = 0
        self.num_too_long = 0
        self.num_windowed = 0
        self.num_undesirable = 0
        self.num_masked = 0  # bad: not one token to learn
        self.lengths = array("I")  # tokens of every usable row, before any cut

    def render(self, record: Record) -> list[Example] | BadRow:
        """No example for a row that is left out; a bad row for one that cannot be learned."""
        row, self._num_rows = self._num_rows, self._num_rows + 1
        if self._shape.objective == "dpo":
            return self._pair(record)
        if isinstance(record, PreferencePair):
            reason = "a preference pair; objective: dpo learns from these, sft does not"
            return BadRow(record.file, record.line, reason)
        if isinstance(record, Conversation) and record.is_desirable is False:
            self.num_undesirable += 1
            return []
        try:
            whole = self._whole(record)
            if whole.num_targets == 0:
                self.num_masked += 1
                return BadRow(record.file, record.line, "no token to learn from")
            kind = self._kind(record)
        except InvalidChat as error:
            return BadRow(record.file, record.line, str(error))
        return self._cut(replace(whole, row=row, source=record.source, kind=kind))

    def _pair(self, record: Record) -> list[Example] | BadRow:
        from training.data.pairs import cut_pair, render_pair  # which are made of examples

        if not isinstance(record, PreferencePair):
            reason = "no preference pair (chosen, rejected); objective: sft learns from it"
            return BadRow(record.file, record.line, reason)
        try:
            whole = render_pair(record, self._renderer)
        except InvalidChat as error:
            return BadRow(record.file, record.line, str(error))
        whole = replace(whole, row=self._num_rows - 1, source=record.source)
        self.lengths.append(max(len(whole.chosen.input_ids), len(whole.rejected.input_ids)))
        pair = cut_pair(whole, self._shape.max_length)
        if pair is None:
            self.num_too_long += 1
            return []
        self.num_truncated += len(pair.input_ids) < len(whole.input_ids)
        return [pair]

    def _whole(self, record: Conversation | PlainText) -> Example:
        if isinstance(record, PlainText):
            ids = array("i", self._renderer.render_document(record.text))
            return Example(ids, ids)
        replies = [m for m in record.messages if m["role"] == "assistant"]
        rendered = self._renderer.render_training(
            [{key: m[key] for key in m if key != "weight"} for m in record.messages],
            tools=record.tools,
            learned=[reply.get("weight", 1) != 0 for reply in replies],
        )
        pairs = zip(rendered.input_ids, rendered.assistant_mask, strict=True)
        labels = [id_ if is_learned else IGNORED for id_, is_learned in pairs]
        return Example(array("i", rendered.input_ids), array("i", labels))

    def _kind(self, record: Conversation | PlainText) -> int:
        if not self._shape.counts_kinds:
            return 0
        column = self._shape.kind_column
        if column is not None:
            if column not in record.fields:
                raise InvalidChat(f"no plain value {column!r}, by which rows are to be sampled")
            return _hash64(repr(record.fields[column]))
        if isinstance(record, PlainText):
            raise InvalidChat("a text has no reply to sample by; name a column: sample_by")
        last = record.messages[-1]
        return _hash64(repr((last["content"], last.get("tool_calls"))))

    def _cut(self, whole: Example) -> list[Example]:
        self.lengths.append(len(whole.input_ids))
        max_length = self._shape.max_length
        if len(whole.input_ids) <= max_length:
            return [whole]
        if self._shape.long_rows == "window":
            self.num_windowed += 1
            windows = cut_windows(
                whole.input_ids, whole.labels, max_length, self._shape.window_overlap
            )
            return [replace(whole, input_ids=ids, labels=labels) for ids, labels in windows]
        head = replace(
            whole, input_ids=whole.input_ids[:max_length], labels=whole.labels[:max_length]
        )
        if head.num_targets == 0:
            self.num_too_long += 1
            return []
        self.num_truncated += 1
        return [head]


def render_examples(records: Iterable[Record], renderer: ChatRenderer, shape: Shape) -> Rendered:
    """Tokenises every record; rows that the base's template cannot hold come back as bad.

    Raises InvalidInput if the windows' overlap does not fit their length.
    """
    examples: list[Example] = []
    bad: list[BadRow] = []
    rows = RowRenderer(renderer, shape)
    for record in records:
        rendered = rows.render(record)
        if isinstance(rendered, BadRow):
            bad.append(rendered)
        else:
            examples += rendered
    return Rendered(
        examples,
        bad,
        num_truncated=rows.num_truncated,
        num_too_long=rows.num_too_long,
        num_windowed=rows.num_windowed,
        num_undesirable=rows.num_undesirable,
    )


def lengths_of(examples: Sequence[Example]) -> list[int]:
    """Tokens of each; examples on disk (training.data.spill) know theirs without being read."""
    kept = getattr(examples, "lengths", None)
    return [len(e.input_ids) for e in examples] if kept is None else kept.tolist()


def example_hash(example: Example) -> bytes:
    """Identity of one row as the model sees it."""
    digest = hashlib.sha256(array("i", example.input_ids).tobytes())
    digest.update(array("i", example.labels).tobytes())
    return digest.digest()


def row_identity(examples: Sequence[Example]) -> bytes:
    """Identity of all examples of one row."""
    if len(examples) == 1:
        return example_hash(examples[0])
    return hashlib.sha256(b"".join(map(example_hash, examples))).digest()


def _hash64(text: str) -> int:
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
