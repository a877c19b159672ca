"""What an export is asked: the adapter's own held-out rows, a file that was given, or our texts."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts.base import Base
from artifacts.chat import ChatRenderer
from artifacts.errors import Corrupt, InvalidChat, InvalidData, InvalidInput, NotFound
from artifacts.heldout import HeldOutRow, read_heldout
from artifacts.home import HOME_VARIABLE, Home
from export.proof.report import Prompts
from export.proof.texts import TEXTS
from export.source import Source

MIN_PROMPTS = 32
DECODE_STEPS = 32
BATCH_SIZE = 8
MAX_TOKENS = 256  # of a row: what is longer is cut, the prompt's beginning first
_MAX_SHOWN = 5  # bad lines in the message of an error


@dataclass(frozen=True, slots=True)
class Questions:
    """Rows with or without a known reply; ``has_replies`` if there is one to take perplexity of."""

    rows: tuple[HeldOutRow, ...]
    facts: Prompts

    @property
    def has_replies(self) -> bool:
        return any(len(row.token_ids) > row.num_prompt for row in self.rows)


def find_questions(source: Source, given: Path | None, max_prompts: int) -> Questions:
    """At least `MIN_PROMPTS`: where there are fewer of their own, our texts come on top.

    Raises InvalidInput, InvalidData with file and line of each bad row, NotFound and Corrupt.
    """
    if max_prompts < MIN_PROMPTS:
        raise InvalidInput(
            f"max_prompts={max_prompts}: a proof takes at least {MIN_PROMPTS}", param="max_prompts"
        )
    base = source.base
    room = base.context_length - DECODE_STEPS - 1
    if room < 1:
        raise InvalidInput(
            f"{base.id} has a context of {base.context_length} tokens; a proof takes "
            f"{DECODE_STEPS + 2}",
            param="model",
        )
    if given is not None:
        rows, what = _given_rows(given, base), f"given: {given}"
    else:
        rows, what = _heldout_rows(source), f"held-out rows of {source.adapter_id}"
    rows = rows[:max_prompts]
    if len(rows) < MIN_PROMPTS:
        built_in = _built_in_rows(base)[: MIN_PROMPTS - len(rows)]
        kept = f"{what} ({len(rows)}), built-in texts ({len(built_in)})"
        what = kept if rows else "built in: no held-out rows kept"
        rows = [*rows, *built_in]
    cut = _ragged([_cut(row, base.context_length, room) for row in rows])
    text = json.dumps([[row.token_ids, row.num_prompt] for row in cut])
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Questions(cut, Prompts(source=what, count=len(cut), sha256=digest))


def _cut(row: HeldOutRow, context: int, room: int) -> HeldOutRow:
    """At most `MAX_TOKENS`, of which the prompt leaves room for an answer; the reply goes last."""
    longest = min(MAX_TOKENS, context)
    start = max(0, min(len(row.token_ids) - longest, row.num_prompt - 1))
    start = max(start, row.num_prompt - room)
    return HeldOutRow(row.token_ids[start : start + longest], min(row.num_prompt - start, longest))


def _ragged(rows: Sequence[HeldOutRow]) -> tuple[HeldOutRow, ...]:
    """No batch of prompts of one length, which would prove nothing of padding."""
    found = list(rows)
    for start in range(0, len(rows), BATCH_SIZE):
        batch = rows[start : start + BATCH_SIZE]
        row = batch[0]
        if len({each.num_prompt for each in batch}) == 1 < min(len(batch), row.num_prompt):
            found[start] = HeldOutRow(row.token_ids[1:], row.num_prompt - 1)
    return tuple(found)


def _heldout_rows(source: Source) -> list[HeldOutRow]:
    root = Path(os.environ.get(HOME_VARIABLE) or ".loraloop").expanduser().resolve()
    rows = read_heldout(Home(root), source.weights.content_hash)  # makes no home where none is
    vocab_size = source.base.config.vocab_size
    for row in rows:
        is_sound = 1 <= row.num_prompt <= len(row.token_ids)
        if not is_sound or not all(0 <= id_ < vocab_size for id_ in row.token_ids):
            raise Corrupt(
                f"a held-out row of {source.adapter_id} does not fit {source.base.id}; delete "
                f"{root / 'heldout' / source.weights.content_hash}.jsonl to go without"
            )
    return rows


def _built_in_rows(base: Base) -> list[HeldOutRow]:
    if base.template_hash is None:
        return [_text_row(text, base) for text in TEXTS]
    renderer = ChatRenderer(base.tokenizer)
    rendered = [renderer.render_prompt([{"role": "user", "content": text}]) for text in TEXTS]
    return [HeldOutRow(tuple(ids), len(ids)) for ids in rendered]


def _text_row(text: str, base: Base) -> HeldOutRow:
    """Plain text, as ``/v1/completions`` reads it. Raises InvalidChat for one without tokens."""
    ids = tuple(base.tokenizer(text)["input_ids"])
    if not ids:
        raise InvalidChat("it has no token")
    return HeldOutRow(ids, len(ids))


def _given_rows(path: Path, base: Base) -> list[HeldOutRow]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path} is not UTF-8 text ({error})", param="prompts") from error
    except OSError as error:
        raise NotFound(f"{path} cannot be read ({error.strerror}); give a readable file") from error
    rows: list[HeldOutRow] = []
    bad: list[tuple[str, int, str]] = []
    read = _reader(path, base)
    for number, line in _filled(lines):
        try:
            rows.append(read(line))
        except (InvalidChat, ValueError) as error:
            bad.append((str(path), number, str(error)))
    if bad:
        shown = "; ".join(f"{file}:{n}: {reason}" for file, n, reason in bad[:_MAX_SHOWN])
        more = f"; and {len(bad) - _MAX_SHOWN} more" if len(bad) > _MAX_SHOWN else ""
        raise InvalidData(f"{len(bad)} prompts cannot be used: {shown}{more}", bad)
    if not rows:
        raise InvalidInput(f"{path} holds no prompt; give one a line", param="prompts")
    return rows


def _filled(lines: Sequence[str]) -> Iterator[tuple[int, str]]:
    return ((i, line) for i, line in enumerate(lines, 1) if line.strip())


def _reader(path: Path, base: Base) -> Any:
    """A line of the file → its row; raises InvalidChat and ValueError with the reason."""
    if path.suffix not in (".jsonl", ".json"):
        return lambda line: _text_row(line, base)
    renderer = None if base.template_hash is None else ChatRenderer(base.tokenizer)
    return lambda line: _json_row(line, base, renderer)


def _json_row(line: str, base: Base, renderer: ChatRenderer | None) -> HeldOutRow:
    row = json.loads(line)
    if not isinstance(row, dict) or ("messages" in row) == ("text" in row):
        raise ValueError('a line is an object with either "messages" or "text"')
    if "text" in row:
        if not isinstance(row["text"], str):
            raise ValueError('"text" is no string')
        return _text_row(row["text"], base)
    if renderer is None:
        raise ValueError(f'{base.id} has no chat template; give "text"')
    return _chat_row(row["messages"], row.get("tools"), renderer)


def _chat_row(messages: Any, tools: Any, renderer: ChatRenderer) -> HeldOutRow:
    """A conversation that ends in a reply holds it; another one asks for it."""
    if not isinstance(messages, list) or not messages:
        raise ValueError('"messages" is no list of messages')
    last = messages[-1]
    if not (isinstance(last, dict) and last.get("role") == "assistant"):
        ids = renderer.render_prompt(messages, tools=tools)
        return HeldOutRow(tuple(ids), len(ids))
    num_prompt = len(renderer.render_prompt(messages[:-1], tools=tools))
    whole = renderer.render_training(messages, tools=tools)
    return HeldOutRow(tuple(whole.input_ids), num_prompt)
