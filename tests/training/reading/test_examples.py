"""Records to examples: where the loss falls, what is left out, and what is counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from artifacts.base import Base, open_base
from artifacts.chat import ChatRenderer
from artifacts.errors import InvalidInput
from training.data.examples import IGNORED, Example, Rendered, Shape, render_examples
from training.data.records import Conversation, PlainText, PreferencePair, Record


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> Base:
    return open_base(tiny_base)


def render(base: Base, *records: Record, **shape: Any) -> Rendered:
    keys = {"max_length": 200, **shape}
    return render_examples(records, ChatRenderer(base.tokenizer), Shape(**keys))


def learned(base: Base, example: Example) -> str:
    text: str = base.tokenizer.decode([label for label in example.labels if label != IGNORED])
    return text


def said(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def chat(*messages: dict[str, Any], **more: Any) -> Conversation:
    return Conversation(list(messages), None, "f", 1, **more)


def qa(question: str, answer: str, **more: Any) -> Conversation:
    return chat(said("user", question), said("assistant", answer), **more)


def test_a_reply_of_weight_zero_is_read_and_not_learned(base: Base) -> None:
    turns = [said("user", "Q"), said("assistant", "A"), said("user", "R"), said("assistant", "B")]
    whole = render(base, chat(*turns)).examples[0]
    weighted = [turns[0], turns[1] | {"weight": 0}, turns[2], turns[3] | {"weight": 1}]
    example = render(base, chat(*weighted)).examples[0]
    assert list(example.input_ids) == list(whole.input_ids)
    assert learned(base, whole) == "A<|end|>B<|end|>"
    assert learned(base, example) == "B<|end|>"


def test_every_token_of_a_text_is_learned_and_the_end_of_it(base: Base) -> None:
    example = render(base, PlainText("One.\n\nTwo <|end|> three 茶", "f", 1)).examples[0]
    assert list(example.labels) == list(example.input_ids)
    assert learned(base, example) == "One.\n\nTwo <|end|> three 茶<|end|>"
    ends = [i for i in example.input_ids if i == base.tokenizer.eos_token_id]
    assert len(ends) == 1  # what was written in the text stayed text
    plain = render(base, PlainText("no special", "f", 1)).examples[0]
    assert list(plain.input_ids[:-1]) == base.tokenizer.encode("no special")


def test_a_text_that_is_no_text_is_a_bad_row(base: Base) -> None:
    rendered = render(base, PlainText("\ud800", "f", 7))
    assert not rendered.examples
    assert (rendered.bad[0].line, "lone surrogate" in rendered.bad[0].reason) == (7, True)


def test_undesirable_rows_are_left_out_and_counted(base: Base) -> None:
    rendered = render(
        base, qa("Q", "A", is_desirable=True), qa("Q", "B", is_desirable=False), qa("Q", "C")
    )
    assert [learned(base, example) for example in rendered.examples] == ["A<|end|>", "C<|end|>"]
    assert rendered.num_undesirable == 1


def test_pairs_are_for_dpo(base: Base) -> None:
    pair = PreferencePair(
        [said("user", "Q")], None, [said("assistant", "A")], [said("assistant", "B")], "f", 1
    )
    rendered = render(base, pair)
    assert not rendered.examples
    assert "objective: dpo learns from these" in rendered.bad[0].reason


def test_long_rows_become_windows_that_train_every_token_once(base: Base) -> None:
    records: list[Record] = [
        qa("Q", "short"),
        PlainText("abcdefghij" * 12, "f", 2),
        qa("Q" * 70, "x" * 70),
    ]
    rendered = render(base, *records, max_length=50, long_rows="window", window_overlap=10)
    assert (rendered.num_windowed, rendered.num_truncated, rendered.num_too_long) == (2, 0, 0)
    assert max(len(example.input_ids) for example in rendered.examples) == 50
    of_row = [[e for e in rendered.examples if e.row == row] for row in range(3)]
    assert len(of_row[0]) == 1
    assert (
        sum(e.num_targets for e in of_row[1]) == 120
    )  # the EOS too, but nothing predicts the first
    assert "".join(learned(base, e) for e in of_row[2]) == "x" * 70 + "<|end|>"
    with pytest.raises(InvalidInput, match="window_overlap=50"):
        render(base, max_length=50, long_rows="window", window_overlap=50)


def test_examples_know_their_source_and_their_kind(base: Base) -> None:
    rows = [
        qa("1", "yes", fields={"topic": "a"}, source=1),
        qa("2", "no", fields={"topic": "a"}),
        qa("3", "yes", fields={"topic": "b"}),
    ]
    assert [(e.row, e.source, e.kind) for e in render(base, *rows).examples] == [
        (0, 1, 0),
        (1, 0, 0),
        (2, 0, 0),
    ]
    by_reply = [e.kind for e in render(base, *rows, counts_kinds=True).examples]
    assert by_reply[0] == by_reply[2] != by_reply[1]
    by_topic = [
        e.kind for e in render(base, *rows, counts_kinds=True, kind_column="topic").examples
    ]
    assert by_topic[0] == by_topic[1] != by_topic[2]
    rendered = render(base, *rows, PlainText("t", "f", 9), counts_kinds=True)
    assert "name a column: sample_by" in rendered.bad[0].reason
    rendered = render(base, *rows, counts_kinds=True, kind_column="absent")
    assert len(rendered.bad) == 3
