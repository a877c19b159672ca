"""Compiled grammars: two at a time beside the traffic, kept while they are asked for."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections import OrderedDict
from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from llguidance import LLTokenizer

from server.answers.grammars.constraint import Constraint
from server.answers.grammars.vocabulary import read_vocabulary
from server.engine.grammar import Grammar, InvalidGrammar
from server.engine.request import SamplingParams
from server.errors import ApiError

NUM_THREADS = 2  # of their own: nothing else waits behind a large schema
STACK_BYTES = 64 * 1024 * 1024  # of address space; llguidance compiles definitions recursively
MAX_BYTES = 512 * 1024  # of one grammar, all its schemas together
MAX_ERROR = 500  # characters of what llguidance says
MAX_KEPT = 256
MAX_KEPT_BYTES = 4 * 1024 * 1024  # of text; a compiled grammar takes some ten times as much
_EXCERPT = re.compile(r"^ +\d+ \|.*(\n +\^)?\n?", re.MULTILINE)


@dataclass(slots=True)
class _Job:
    """A grammar that is being compiled, and how many wait for it."""

    result: Future[Grammar]
    num_waiting: int = 0


class GrammarCompiler:
    """One for each server. Everything is called on the event loop."""

    def __init__(self, tokenizer: Any, vocab_size: int, eos_token_ids: Collection[int]) -> None:
        self._hf_tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_token_ids = sorted(eos_token_ids)
        self._kept: OrderedDict[str, Grammar] = OrderedDict()
        self._kept_bytes = 0
        self._jobs: dict[str, _Job] = {}
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="grammar")
        self._making_tokenizer = threading.Lock()

    async def constrain(
        self, sampling: SamplingParams, constraint: Constraint | None
    ) -> SamplingParams:
        """``sampling`` held to ``constraint``. Raises as ``compile`` does."""
        if constraint is None:
            return sampling
        if sampling.ignore_eos:
            message = (
                f"ignore_eos cannot go with {constraint.param}: the end of such an answer is its "
                "grammar's."
            )
            raise ApiError(400, message, param="ignore_eos", code="invalid_combination")
        return replace(sampling, grammar=await self.compile(constraint))

    async def compile(self, constraint: Constraint) -> Grammar:
        """The grammar of ``constraint``. Raises ApiError that names its field."""
        text = constraint.lark
        if (grammar := self._kept.get(text)) is not None:
            self._kept.move_to_end(text)
            return grammar
        if not self._hf_tokenizer.is_fast:
            message = (
                f"{constraint.param} needs a base with a fast tokenizer (tokenizer.json); this "
                "one has none."
            )
            raise ApiError(400, message, param=constraint.param, code="unsupported_parameter")
        if (size := len(text.encode())) > MAX_BYTES:
            message = (
                f"{constraint.param} makes a grammar of {size} bytes, the most is {MAX_BYTES}."
            )
            raise ApiError(400, message, param=constraint.param, code=constraint.code)
        try:
            grammar = await self._compiled(text)
        except InvalidGrammar as error:
            message = f"Invalid value for {constraint.param}: {_reason(error)}"
            raise ApiError(400, message, param=constraint.param, code=constraint.code) from None
        self._keep(text, grammar)
        return grammar

    def prepare(self) -> None:
        """Read the vocabulary. 0.5 s for 100,000 tokens in which no other thread runs, so that it
        is better done before there are any."""
        if self._hf_tokenizer.is_fast:
            _ = self._tokenizer

    def literal(self, text: str) -> str:
        """``text`` as a Lark expression. Special tokens in it stand as such, by their ids."""
        parts = self._marks.split(text) if self._special else [text]
        return " ".join(self._word(part) for part in parts if part) or '""'

    def _word(self, part: str) -> str:
        token_id = self._special.get(part)
        return json.dumps(part, ensure_ascii=False) if token_id is None else f"<[{token_id}]>"

    async def _compiled(self, text: str) -> Grammar:
        job = self._jobs.get(text)
        if job is None:
            job = self._jobs[text] = _Job(self._submit(text))
        job.num_waiting += 1
        try:
            return await asyncio.shield(asyncio.wrap_future(job.result))
        finally:
            job.num_waiting -= 1
            if job.num_waiting == 0:
                del self._jobs[text]
                job.result.cancel()  # in vain if it has begun

    def _submit(self, text: str) -> Future[Grammar]:
        before = threading.stack_size(STACK_BYTES)  # of the threads that this may begin
        try:
            return self._threads.submit(self._compile, text)
        finally:
            threading.stack_size(before)

    def _compile(self, text: str) -> Grammar:
        with self._making_tokenizer:
            tokenizer = self._tokenizer
        return Grammar(tokenizer, text)

    @cached_property
    def _tokenizer(self) -> LLTokenizer:
        return read_vocabulary(self._hf_tokenizer, self._vocab_size, self._eos_token_ids)

    @cached_property
    def _special(self) -> dict[str, int]:
        added = self._hf_tokenizer.added_tokens_decoder
        return {str(token): token_id for token_id, token in added.items() if token.special}

    @cached_property
    def _marks(self) -> re.Pattern[str]:
        longest_first = sorted(self._special, key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, longest_first))})")

    def _keep(self, text: str, grammar: Grammar) -> None:
        if text in self._kept:
            return
        self._kept[text] = grammar
        self._kept_bytes += len(text)
        while len(self._kept) > MAX_KEPT or self._kept_bytes > MAX_KEPT_BYTES:
            oldest, _ = self._kept.popitem(last=False)
            self._kept_bytes -= len(oldest)


def _reason(error: InvalidGrammar) -> str:
    """What llguidance says, without the lines of the grammar that it shows: they may be long, and
    they are not the client's."""
    text = _EXCERPT.sub("", str(error)).strip()
    return text if len(text) <= MAX_ERROR else text[:MAX_ERROR] + "…"
