"""OpenAI's JSON for plain completions, with the prompt in front where ``echo`` asks for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from server.answers.pieces import Part, Said
from server.answers.token_text import TokenText
from server.answers.wire import Choice, finite
from server.engine.request import TokenLogprob


@dataclass(frozen=True, slots=True)
class Echo:
    """A prompt as an answer begins with it."""

    text: str
    first_id: int  # its first token, which has no logprob


@dataclass(slots=True)
class _Written:
    """How far one choice's text has come."""

    is_echoed: bool = False
    is_begun: bool = False  # a token was counted
    num_characters: int = 0  # of the tokens whose logprobs were written, each begun one counted


@dataclass(slots=True)
class CompletionWire:
    """/v1/completions. ``tokens`` is None where no logprobs were asked for.

    ``echo`` holds each prompt where the answers begin with it; ``num_choices`` answers belong to
    one prompt.
    """

    tokens: TokenText | None
    echo: Sequence[Echo] = ()
    num_choices: int = 1
    object_name: str = field(default="text_completion", init=False)
    chunk_name: str = field(default="text_completion", init=False)
    _written: dict[int, _Written] = field(default_factory=dict, init=False)

    def opening(self, index: int) -> dict[str, Any] | None:
        return None

    def part(self, index: int, part: Part) -> Iterator[dict[str, Any]]:
        text = "".join(piece.text for piece in part.pieces if isinstance(piece, Said))
        written = self._of(index)
        if self.echo and not written.is_echoed:
            written.is_echoed = True
            text = self._echo(index).text + text
        logprobs = self._logprobs(index, (*part.prompt_logprobs, *part.logprobs))
        if text or logprobs is not None:
            yield _choice(index, text, logprobs)

    def ending(self, index: int, finish_reason: str) -> dict[str, Any]:
        return _choice(index, "", None, finish_reason)

    def whole(self, index: int, choice: Choice) -> dict[str, Any]:
        text = (self._echo(index).text if self.echo else "") + choice.text
        scored = (*choice.prompt_logprobs, *choice.logprobs)
        logprobs = self._logprobs(index, scored) or self._no_logprobs()
        return _choice(index, text, logprobs, choice.finish_reason)

    def _of(self, index: int) -> _Written:
        return self._written.setdefault(index, _Written())

    def _echo(self, index: int) -> Echo:
        return self.echo[index // self.num_choices]

    def _no_logprobs(self) -> dict[str, Any] | None:
        """Of an answer without a token."""
        names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
        return None if self.tokens is None else {name: [] for name in names}

    def _logprobs(self, index: int, scored: Sequence[TokenLogprob | None]) -> dict[str, Any] | None:
        if self.tokens is None or not scored:
            return None
        texts = [self.tokens.of(self._id(index, one)) for one in scored]
        return {
            "tokens": [text for text, _ in texts],
            "token_logprobs": [None if one is None else finite(one.logprob) for one in scored],
            "top_logprobs": [None if one is None else self._top(one) for one in scored],
            "text_offset": [self._offset(index, text, raw) for text, raw in texts],
        }

    def _id(self, index: int, one: TokenLogprob | None) -> int:
        return self._echo(index).first_id if one is None else one.token_id

    def _offset(self, index: int, text: str, raw: Sequence[int]) -> int:
        """Where the next token begins in the choice's text, in characters."""
        written = self._of(index)
        is_first, written.is_begun = not written.is_begun, True
        if is_first and self.echo and not self._echo(index).text.startswith(text):
            return 0  # a mark that the tokenizer put in front, such as a BOS
        at = written.num_characters - _is_inside(raw)
        written.num_characters += sum(not _is_inside((byte,)) for byte in raw)
        return at

    def _top(self, one: TokenLogprob) -> dict[str, float]:
        """The best tokens and the chosen one; of tokens that read alike the likelier."""
        assert self.tokens is not None
        found: dict[str, float] = {}
        for token, value in ((one.token_id, one.logprob), *one.top):
            text = self.tokens.of(token)[0]
            found[text] = max(finite(value), found.get(text, finite(value)))
        return found


def _is_inside(raw: Sequence[int]) -> bool:
    """Whether the bytes begin inside a UTF-8 character."""
    return bool(raw) and raw[0] & 0xC0 == 0x80


def _choice(
    index: int,
    text: str,
    logprobs: dict[str, Any] | None = None,
    finish_reason: str | None = None,
) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}
