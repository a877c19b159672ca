"""Stand-ins for what needs torch: an engine that says what a script says, a base, a renderer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from artifacts.errors import InvalidChat
from server.engine.errors import GrammarTooComplex
from server.engine.request import (
    Delta,
    EngineStats,
    GenerationRequest,
    Timing,
    TokenLogprob,
)
from server.trouble import Trouble

EOS = 1
FIRST_ID = 3  # ids 0…2 are special, the next ones stand for WORDS
WORDS = ("Hello", ",", " wor", "ld", "!", " 你好", "", " more")


def ids_of(prompt: str) -> list[int]:
    return [FIRST_ID + ord(char) % 90 for char in prompt]


def text_of(ids: Sequence[int]) -> str:
    return "".join(WORDS[(i - FIRST_ID) % len(WORDS)] for i in ids if i >= FIRST_ID)


@dataclass
class Script:
    """How the fake engine answers."""

    tokens: tuple[int, ...] = tuple(range(FIRST_ID, FIRST_ID + 5))  # Hello, world!
    texts: tuple[str, ...] = ()  # of those tokens, in place of WORDS
    is_endless: bool = False
    delay_s: float = 0.0
    hold: asyncio.Event | None = None  # waited for before the first token
    fail_after: int | None = None  # tokens, then finish_reason "error"
    blames_request: bool = False  # for that error
    refusal: Exception | None = None  # raised by submit


class FakeStream:
    def __init__(self, engine: FakeEngine, request: GenerationRequest) -> None:
        self.engine = engine
        self.request = request
        self.ready: list[Delta] = []
        self.listener: Callable[[Delta], None] | None = None
        self.is_finished = False
        self.num_generated = 0
        self.is_waiting = True  # as long as the script holds it back
        self.task = asyncio.create_task(self._generate())

    def listen(self, listener: Callable[[Delta], None]) -> None:
        self.listener = listener
        for delta in self.ready:
            listener(delta)

    def take_ready(self) -> list[Delta]:
        ready, self.ready = self.ready, []
        self.is_finished |= any(delta.finish_reason for delta in ready)
        return ready

    def stop(self) -> None:
        if not self.is_finished and not self.task.done():
            self.engine.abort(self.request.request_id)
        self.is_finished = True
        self.ready.clear()

    async def _generate(self) -> None:
        script, sampling = self.engine.script, self.request.sampling
        self.engine.running[self.request.request_id] = self
        try:
            if script.hold is not None:
                await script.hold.wait()
            self.is_waiting = False
            for position in range(sampling.max_tokens):
                if script.delay_s:
                    await asyncio.sleep(script.delay_s)
                else:
                    await asyncio.sleep(0)
                if script.fail_after == position:
                    cause = GrammarTooComplex("too much") if script.blames_request else None
                    name = self.request.request_id
                    self._put(Delta(name, finish_reason="error", error="boom", cause=cause))
                    return
                if position >= len(script.tokens) and not script.is_endless:
                    self._put(self._delta(EOS, "stop"))
                    return
                token = script.tokens[position % len(script.tokens)]
                is_last = position + 1 == sampling.max_tokens
                self._put(self._delta(token, "length" if is_last else None))
        finally:
            self.engine.running.pop(self.request.request_id, None)

    def _put(self, delta: Delta) -> None:
        if delta.finish_reason is not None:
            request = self.request
            timing = Timing(0.001, 0.002, 0.01, len(request.prompt_ids), 2, self.num_generated)
            delta = replace(delta, timing=timing)
        if self.is_finished:
            return
        self.ready.append(delta)
        if self.listener is not None:
            self.listener(delta)

    def _delta(self, token: int, finish_reason: Any) -> Delta:
        self.num_generated += 1
        self.engine.num_tokens += 1
        scored = self._prompt_logprobs() if self.num_generated == 1 else ()
        logprobs: tuple[TokenLogprob, ...] = ()
        if (num := self.request.sampling.top_logprobs) is not None:
            top = tuple((token + i, -0.5 - i) for i in range(num))
            logprobs = (TokenLogprob(token, -0.5, top),)
        texts, at = self.engine.script.texts, self.num_generated - 1
        text = texts[at] if at < len(texts) else text_of([token])
        name = self.request.request_id
        return Delta(name, text, (token,), logprobs, finish_reason, prompt_logprobs=scored)

    def _prompt_logprobs(self) -> tuple[TokenLogprob | None, ...]:
        if (num := self.request.sampling.prompt_logprobs) is None:
            return ()
        rest = self.request.prompt_ids[1:]
        top = [tuple((token + i, -2.0 - i) for i in range(num)) for token in rest]
        return (None, *map(TokenLogprob, rest, [-2.0] * len(rest), top))

    def end(self) -> None:
        """As the engine ends it: with ``abort``."""
        self.task.cancel()
        self._put(Delta(self.request.request_id, finish_reason="abort"))


@dataclass
class FakeEngine:
    """The engine contract without a model. Records what it was asked."""

    script: Script = field(default_factory=Script)
    max_model_len: int = 64
    max_rank: int = 64
    kv_tokens: int = 400
    vocab_size: int = 100
    kernels: str = "torch"
    requests: list[GenerationRequest] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    running: dict[str, FakeStream] = field(default_factory=dict)
    known: dict[str, Any] = field(default_factory=dict)
    num_tokens: int = 0
    is_healthy: bool = True
    is_started: bool = False

    def start(self) -> None:
        self.is_started = True

    def stop(self) -> None:
        self.is_started = False
        for stream in list(self.running.values()):
            stream.task.get_loop().call_soon_threadsafe(stream.end)

    def submit(self, request: GenerationRequest) -> FakeStream:
        if self.script.refusal is not None:
            raise self.script.refusal
        self.requests.append(request)
        return FakeStream(self, request)

    def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)
        if request_id in self.running:
            self.running[request_id].end()

    def abort_waiting(self) -> None:
        for stream in [each for each in self.running.values() if each.is_waiting]:
            self.abort(stream.request.request_id)

    def add_adapter(self, key: str, weights: Any) -> None:
        self.known[key] = weights

    async def preload_adapter(self, key: str) -> float:
        return 0.0

    async def remove_adapter(self, key: str, *, wait: bool = True) -> None:
        del self.known[key]

    def known_adapters(self) -> set[str]:
        return set(self.known)

    def stats(self) -> EngineStats:
        return EngineStats(
            num_running=len(self.running),
            num_waiting=0,
            kv_blocks_total=10,
            kv_blocks_free=10 - min(len(self.running), 10),
            kv_bytes=4096,
            resident_adapters=dict.fromkeys(self.known, 1000),
            pinned_adapters={},
            is_healthy=self.is_healthy,
        )


@dataclass(frozen=True)
class Encoding:
    ids: list[int]


class FakeTokenizer:
    """One token per character of a prompt; answers are made of WORDS."""

    is_fast = True
    chat_template = ""

    @property
    def backend_tokenizer(self) -> FakeTokenizer:
        return self

    def encode_batch_fast(
        self, texts: list[str], add_special_tokens: bool = True
    ) -> list[Encoding]:
        return [Encoding(ids_of(text)) for text in texts]

    def get_vocab(self) -> dict[str, int]:
        return {word: FIRST_ID + i for i, word in enumerate(WORDS)}

    def __len__(self) -> int:
        return FIRST_ID + len(WORDS)

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        return "<end>" if ids == [EOS] else text_of(ids)

    def convert_ids_to_tokens(self, token_id: int) -> str:
        return text_of([token_id])


@dataclass(frozen=True)
class FakeBase:
    id: str = "tiny-base"
    fingerprint: str = "f" * 64
    template_hash: str = "t" * 64
    eos_token_ids: frozenset[int] = frozenset({EOS})
    tokenizer: FakeTokenizer = field(default_factory=FakeTokenizer)
    context_length: int = 64
    takes_adapters: bool = True
    record: Any = None
    export: Any = None
    proof: Any = None


class FakeRenderer:
    """One token per character of all contents; refuses the role ``tool`` as many templates do."""

    num_rendered = 0

    def render_prompt(self, messages: list[dict[str, Any]], **options: Any) -> list[int]:
        if any(message["role"] == "tool" for message in messages):
            raise InvalidChat("this base's template has no role 'tool'", param="messages")
        text = "".join(message["content"] for message in messages)
        self.num_rendered += 1
        return [*ids_of(text), 2]

    def render_text(self, messages: list[dict[str, Any]], **options: Any) -> str:
        """Calls as Hermes' template writes them, and nothing else."""
        calls = [call["function"] for message in messages for call in message.get("tool_calls", ())]
        return "\n".join(f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in calls)


@dataclass
class FakeAdapters:
    """Knows how to make a version answerable without reading it."""

    engine: FakeEngine
    failure: Exception | None = None

    @asynccontextmanager
    async def lease(self, version: Any) -> AsyncIterator[None]:
        await self.ensure(version)
        yield

    async def ensure(self, version: Any) -> None:
        if self.failure is not None:
            raise self.failure
        self.engine.add_adapter(version.content_hash, version)


class FakeJobs:
    """No job has ever run."""

    def __init__(self) -> None:
        self.trouble = Trouble("jobs")

    def report(self) -> dict[str, Any]:
        return {"running": 0, "is_paused": False, "pauses": 0, "paused_s": 0.0}
