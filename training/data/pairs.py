"""Preference pairs to token ids: the prompt is what serving renders, then each reply. No torch.

A reply is trained in the form in which it is generated: both rows begin with exactly the ids of
``render_prompt``, and nothing before the reply is compared.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace

from artifacts.chat import ChatRenderer
from artifacts.errors import InvalidChat
from training.data.examples import IGNORED, Example
from training.data.records import Message, PreferencePair


@dataclass(frozen=True, slots=True)
class PairExample(Example):
    """The chosen row's tokens, then the rejected row's, which begin at ``rejected_at``."""

    rejected_at: int = 0
    reference: tuple[float, float] = (0.0, 0.0)  # log-probabilities of both replies beforehand

    @property
    def chosen(self) -> Example:
        return Example(self.input_ids[: self.rejected_at], self.labels[: self.rejected_at])

    @property
    def rejected(self) -> Example:
        return Example(self.input_ids[self.rejected_at :], self.labels[self.rejected_at :])


def render_pair(record: PreferencePair, renderer: ChatRenderer) -> PairExample:
    """Both rows in full length. Raises InvalidChat, also for replies that render alike."""
    prompt = renderer.render_prompt(record.messages, tools=record.tools)
    chosen, rejected = (
        _reply(record, reply, prompt, renderer) for reply in (record.chosen, record.rejected)
    )
    if chosen.input_ids == rejected.input_ids:
        raise InvalidChat("the chosen and the rejected reply are the same")
    return join_pair(chosen, rejected)


def join_pair(chosen: Example, rejected: Example) -> PairExample:
    """Two rows of one prompt as one pair."""
    ids = array("i", [*chosen.input_ids, *rejected.input_ids])
    labels = array("i", [*chosen.labels, *rejected.labels])
    return PairExample(ids, labels, rejected_at=len(chosen.input_ids))


def cut_pair(whole: PairExample, max_length: int) -> PairExample | None:
    """Both rows cut to ``max_length``; None if one of them keeps nothing of its reply."""
    sides = [
        replace(side, input_ids=side.input_ids[:max_length], labels=side.labels[:max_length])
        for side in (whole.chosen, whole.rejected)
    ]
    if any(side.num_targets == 0 for side in sides):
        return None
    cut = join_pair(*sides)
    return replace(cut, row=whole.row, source=whole.source, kind=whole.kind)


def _reply(
    record: PreferencePair, reply: Sequence[Message], prompt: Sequence[int], renderer: ChatRenderer
) -> Example:
    rendered = renderer.render_training([*record.messages, *reply], tools=record.tools)
    ids = rendered.input_ids
    if ids[: len(prompt)] != list(prompt):
        raise InvalidChat("the base's template renders the prompt in another way before a reply")
    learned = zip(ids, rendered.assistant_mask, strict=True)
    labels = (
        token if is_reply and place >= len(prompt) else IGNORED
        for place, (token, is_reply) in enumerate(learned)
    )
    return Example(array("i", ids), array("i", labels))
