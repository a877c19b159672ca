"""Samples as the model sees them: every token, special ones too, and where the loss falls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from rich.text import Text

from training.data.examples import IGNORED, Example
from training.data.row_set import LoadedRow

LEARNED = "bold green"
READ = "dim"
SPECIAL = "reverse"


def preview(rows: Sequence[LoadedRow], tokenizer: Any, has_colour: bool) -> Iterator[Text]:
    """Each row with a line above it. Without colour what is learned stands in «»."""
    yield Text.assemble("the loss falls on ", *_piece("this", True, False, has_colour),
                        ", not on ", *_piece("this", False, False, has_colour))  # fmt: skip
    for row in rows:
        for example in row.examples:
            num_tokens = len(example.input_ids)
            learned = num_tokens - list(example.labels).count(IGNORED)
            yield Text(f"{row.place}: {num_tokens} tokens, {learned} of them learned", "bold")
            yield render_masked(example, tokenizer, has_colour)


def render_masked(example: Example, tokenizer: Any, has_colour: bool) -> Text:
    """The tokens' own text: of whole runs, because a character may be several tokens."""
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    tokens = zip(example.input_ids, example.labels, strict=True)
    pieces: list[Text | tuple[str, str]] = []
    for (is_learned, is_special), run in groupby(
        tokens, key=lambda pair: (pair[1] != IGNORED, pair[0] in special)
    ):
        ids = [token for token, _ in run]
        text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        pieces += _piece(text, is_learned, is_special, has_colour)
    return Text.assemble(*pieces)


def _piece(
    text: str, is_learned: bool, is_special: bool, has_colour: bool
) -> list[Text | tuple[str, str]]:
    style = LEARNED if is_learned else READ
    shown = f"«{text}»" if is_learned and not has_colour else text
    return [(shown, f"{style} {SPECIAL}" if is_special else style)]
