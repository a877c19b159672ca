"""The one way from chat messages to token ids, for serving and for training.

A prompt's ids equal ``tokenizer.apply_chat_template``'s. Beyond it: special tokens written inside
messages stay text, whatever a template would drop unseen is refused, and a training row begins with
exactly the ids of its prompt. Rendering a prompt is safe from many threads; ``render_training`` is
not (the tracker behind ``{% generation %}`` belongs to the compiled template).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from artifacts.base import template_hash
from artifacts.chat_messages import (
    Message,
    check_text,
    map_strings,
    normalize_messages,
    normalize_tools,
    strings_of,
)
from artifacts.chat_template import NO_VARIABLES, ChatTemplate, Spans, Variables
from artifacts.errors import InvalidChat

Messages = Sequence[Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]] | None
FIRST_BREAK = 0xF0000  # private use, plane 15


@dataclass(frozen=True)
class RenderedChat:
    """One training row; ``assistant_mask[i]`` says whether ``input_ids[i]`` is to be learned."""

    input_ids: list[int]
    assistant_mask: list[bool]


@dataclass(frozen=True)
class _Prepared:
    """Checked messages; ``mark`` breaks special tokens in them, None if there are none."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None
    variables: Variables
    mark: str | None


class ChatRenderer:
    """Renders and tokenises the chats of one base."""

    def __init__(self, tokenizer: Any) -> None:
        self.template_hash = template_hash(tokenizer)
        self._tokenizer = tokenizer
        self._template = ChatTemplate(tokenizer)
        special, control = _control_tokens(tokenizer)
        self._special = _token_starts(special)
        self._control = _token_starts(control)
        self._fast = tokenizer.backend_tokenizer if tokenizer.is_fast else None
        if self._fast is not None:  # as transformers' own call does before each text
            self._fast.no_truncation()
            self._fast.no_padding()
        self._newline = self._encode("\n")
        self._adds_prefix = self._encode("\na")[len(self._newline) :] != self._encode("a")

    @property
    def shows_reasoning(self) -> bool:
        """Whether the template shows ``reasoning_content``. Raises InvalidChat without one."""
        return self._template.shows_reasoning

    def render_prompt(
        self,
        messages: Messages,
        *,
        tools: Tools = None,
        variables: Variables = NO_VARIABLES,
        continues_last: bool = False,
    ) -> list[int]:
        """Token ids up to where the assistant's reply begins. Raises InvalidChat.

        ``variables`` are the template's own. ``continues_last``: the reply goes on where the last
        message, the assistant's, stops: behind its text, or behind its thoughts if it has no text.
        """
        chat = self._prepare(messages, tools, variables)
        if continues_last:
            text = self._continued(chat)
        else:
            text = self._template.render(
                chat.messages, chat.tools, chat.variables, add_generation_prompt=True
            )
        return self._encode_pieces(_split(text, chat.mark))

    def render_text(
        self, messages: Messages, *, tools: Tools = None, add_generation_prompt: bool = True
    ) -> str:
        """The text behind ``render_prompt``. Tokenising it again may turn user text into control
        tokens: for people to read."""
        chat = self._prepare(messages, tools)
        text = self._template.render(
            chat.messages, chat.tools, add_generation_prompt=add_generation_prompt
        )
        return "".join(_split(text, chat.mark))

    def render_training(
        self, messages: Messages, *, tools: Tools = None, learned: Sequence[bool] | None = None
    ) -> RenderedChat:
        """A whole conversation; the mask selects each assistant reply with the EOS that ends it.

        ``learned`` says of each assistant message whether it is selected; None: all are. Raises
        InvalidChat, also where replies would be learned in another form than the one in which they
        are generated.
        """
        chat = self._prepare(messages, tools)
        text, spans = self._template.render_with_spans(chat.messages, chat.tools)
        if learned is not None:
            spans = [span for span, is_on in zip(spans, learned, strict=True) if is_on]
        ids: list[int] = []
        mask: list[bool] = []
        for piece, is_reply in _cut(text, spans):
            pieces = _split(piece, chat.mark)
            new = self._encode_pieces(pieces) if not ids else self._encode_rest(pieces)
            ids += new
            mask += [is_reply] * len(new)
        return RenderedChat(ids, mask)

    def render_document(self, text: str) -> list[int]:
        """Plain text as ``/v1/completions`` reads it, and the EOS that ends it; special tokens
        written in it stay text. Raises InvalidChat for a base without EOS, and for what is no text.
        """
        if self._tokenizer.eos_token_id is None:
            raise InvalidChat("this base has no EOS, so a document has no end; set its eos_token")
        check_text(text, "text")
        mark = _unused_mark([text])
        start: list[int] = list(self._tokenizer.encode(""))  # a BOS, where this base writes one
        if start and start[-1] == self._tokenizer.eos_token_id:
            start = start[:-1]
        ids = self._encode_pieces(_split(self._break(text, mark), mark))
        return [*start, *ids, self._tokenizer.eos_token_id]

    def _continued(self, chat: _Prepared) -> str:
        """The text up to the end of what the last message says."""
        *before, last = chat.messages
        place = f"messages[{len(before)}]"
        if last["role"] != "assistant" or "tool_calls" in last:
            raise InvalidChat(
                f"{place}: only a message of the assistant without tool_calls can be continued",
                param="continue_final_message",
            )
        said = "content" if last["content"] else "reasoning_content"
        if not last.get(said):
            raise InvalidChat(
                f"{place} is empty: there is nothing to continue; leave it out", param=place
            )
        end = _unused_mark([*chat.messages, chat.tools, chat.variables, chat.mark or ""])
        messages = [*before, last | {said: last[said] + end}]
        text = self._template.render(
            messages, chat.tools, chat.variables, add_generation_prompt=False
        )
        if text.count(end) != 1:
            raise InvalidChat(
                f"{place}: the chat template of this base does not show its {said} once, so that "
                "it cannot be continued",
                param="continue_final_message",
            )
        return text[: text.index(end)]

    # --- special tokens in user text ---

    def _prepare(
        self, messages: Messages, tools: Tools, variables: Variables = NO_VARIABLES
    ) -> _Prepared:
        checked, checked_tools = normalize_messages(messages), normalize_tools(tools)
        self._template.check(checked, checked_tools, variables)
        whole = [checked, checked_tools, variables]
        if not any(self._control.search(text) for text in strings_of(whole)):
            return _Prepared(checked, checked_tools, variables, None)
        mark = _unused_mark(whole)
        escaped = [self._escape_message(message, mark) for message in checked]
        rest = map_strings([checked_tools, variables], lambda text: self._break(text, mark))
        return _Prepared(escaped, rest[0], rest[1], mark)

    def _escape_message(self, message: Message, mark: str) -> Message:
        escaped = {
            key: map_strings(value, lambda text: self._break(text, mark))
            for key, value in message.items()
        }
        escaped["role"] = message["role"]
        if message["role"] == "assistant":
            # A reply sent back may hold <think> and the like, which templates look for; what can
            # end a turn or begin another stays text here too.
            escaped["content"] = self._special.sub(rf"\g<0>{mark}", message["content"])
        return escaped

    def _break(self, text: str, mark: str) -> str:
        """Put ``mark`` behind the first character of each special token, so that none is whole."""
        return self._control.sub(rf"\g<0>{mark}", text)

    # --- tokens ---

    def _encode(self, text: str) -> list[int]:
        if self._fast is None:
            return list(self._tokenizer.encode(text, add_special_tokens=False))
        # Not through tokenizer(...): that sets options on the shared backend at each call, which
        # fails while another thread decodes. encode_batch_fast, not encode, lets other threads run.
        return list(self._fast.encode_batch_fast([text], add_special_tokens=False)[0].ids)

    def _encode_pieces(self, pieces: Sequence[str]) -> list[int]:
        return self._encode(pieces[0]) + self._encode_rest(pieces[1:])

    def _encode_rest(self, pieces: Sequence[str]) -> list[int]:
        return [id_ for piece in pieces if piece for id_ in self._encode_continued(piece)]

    def _encode_continued(self, piece: str) -> list[int]:
        """Encode text that does not begin a string: SentencePiece would put a space before it."""
        if self._adds_prefix:
            ids = self._encode("\n" + piece)
            if ids[: len(self._newline)] == self._newline:
                return ids[len(self._newline) :]
        return self._encode(piece)


def _control_tokens(tokenizer: Any) -> tuple[list[str], list[str]]:
    """Special tokens, and with them the added ones that the template itself writes (<think> …)."""
    template = str(tokenizer.chat_template)
    added = tokenizer.added_tokens_decoder.values()
    special = [token.content for token in added if token.special]
    # Whitespace and letters are text in a template, whatever the tokenizer does with them.
    written = [text.content for text in added if text.content in template]
    marks = [text for text in written if text.strip() and not text.isalnum()]
    control = {text for text in special + marks if len(text) > 1}  # one character cannot be broken
    return sorted(control & set(special)), sorted(control)


def _token_starts(tokens: Sequence[str]) -> re.Pattern[str]:
    """Matches the first character of each token, tokens inside tokens included."""
    if not tokens:
        return re.compile("(?!)")
    return re.compile(f"(?={'|'.join(map(re.escape, tokens))}).", re.DOTALL)


def _unused_mark(value: Any) -> str:
    used = set().union(*(set(text) for text in strings_of(value)))
    return next(chr(code) for code in range(FIRST_BREAK, 0xFFFFD) if chr(code) not in used)


def _split(text: str, mark: str | None) -> list[str]:
    return [text] if mark is None else text.split(mark)


def _cut(text: str, spans: Spans) -> list[tuple[str, bool]]:
    """The text in order, cut at the spans' ends: (piece, lies inside a span)."""
    inside = [(start, True) for start, _ in spans]
    outside = [(end, False) for _, end in spans]
    # Where one span ends and the next begins, the sort keeps the end before the start.
    borders = sorted([(0, False), *outside, *inside], key=lambda border: border[0])
    borders.append((len(text), False))
    pieces = [(text[start:end], is_in) for (start, is_in), (end, _) in pairwise(borders)]
    return [piece for piece in pieces if piece[0]]


__all__ = ["ChatRenderer", "InvalidChat", "RenderedChat"]
