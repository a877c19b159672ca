"""Conversations to token ids with labels, through the renderer that also serves. No torch.

The loss falls on assistant tokens only. A row longer than ``max_length`` loses its tail; one whose
replies lie wholly in that tail is left out. Both are counted, neither is silent.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from artifacts.chat import ChatRenderer
from artifacts.errors import InvalidChat
from training.data.formats import Conversation
from training.data.rows import BadRow

IGNORED = -100  # transformers' label of a position without loss


@dataclass(frozen=True, slots=True)
class Example:
    """One row as tokens. ``labels[i]`` is ``input_ids[i]`` where the loss falls, else IGNORED."""

    input_ids: Sequence[int]
    labels: Sequence[int]

    @property
    def num_targets(self) -> int:
        """Predicted tokens: position 0 has nothing before it to be predicted from."""
        return len(self.labels) - 1 - list(self.labels[1:]).count(IGNORED)


@dataclass(frozen=True, slots=True)
class Rendered:
    """Examples in the order of their rows, and what happened to the rest."""

    examples: list[Example]
    bad: list[BadRow]
    num_truncated: int
    num_too_long: int  # left out: no reply within max_length


def render_examples(
    conversations: Iterable[Conversation], renderer: ChatRenderer, max_length: int
) -> Rendered:
    """Tokenises every conversation; rows that the base's template cannot hold come back as bad."""
    examples: list[Example] = []
    bad: list[BadRow] = []
    num_truncated = num_too_long = 0
    for row in conversations:
        try:
            rendered = renderer.render_training(row.messages, tools=row.tools)
        except InvalidChat as error:
            bad.append(BadRow(row.file, row.line, str(error)))
            continue
        whole = _example(rendered.input_ids, rendered.assistant_mask)
        if whole.num_targets == 0:
            bad.append(BadRow(row.file, row.line, "no assistant token to learn from"))
            continue
        example = Example(whole.input_ids[:max_length], whole.labels[:max_length])
        if example.num_targets == 0:
            num_too_long += 1
            continue
        num_truncated += len(whole.input_ids) > max_length
        examples.append(example)
    return Rendered(examples, bad, num_truncated, num_too_long)


def _example(input_ids: Sequence[int], assistant_mask: Sequence[int]) -> Example:
    labels = (i if on else IGNORED for i, on in zip(input_ids, assistant_mask, strict=True))
    return Example(array("i", input_ids), array("i", labels))


def example_hash(example: Example) -> bytes:
    """Identity of one row as the model sees it."""
    digest = hashlib.sha256(array("i", example.input_ids).tobytes())
    digest.update(array("i", example.labels).tobytes())
    return digest.digest()
