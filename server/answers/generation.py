"""One accepted request: its engine streams, its clock, its end. Knows no wire format.

``accept`` does everything that can be refused; what it returns has been accepted by the engine and
must be closed by whoever sends the answer, on every path.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace

from server.engine.errors import EngineClosed, EngineOverloaded
from server.engine.request import Delta, GenerationRequest, SamplingParams
from server.errors import ApiError
from server.reporting.telemetry import RequestTimer
from server.resolve import Target, fingerprint
from server.state import AnswerStream, Lifecycle, Server

log = logging.getLogger("loraloop.server")


@dataclass(frozen=True, slots=True)
class Work:
    """A validated request: ``num_choices`` answers to each of ``prompts``."""

    target: Target
    prompts: tuple[tuple[int, ...], ...]
    sampling: SamplingParams
    num_choices: int
    subject: str | None
    received_at: float  # time.perf_counter
    id_prefix: str = "chatcmpl"


@dataclass(slots=True)
class Answer:
    """What the engine has accepted. Choices are numbered prompt by prompt."""

    id: str
    created: int
    model: str
    fingerprint: str
    headers: dict[str, str]
    num_prompt_tokens: int
    streams: list[AnswerStream]
    timer: RequestTimer
    lifecycle: Lifecycle
    _num_open: int
    _is_closed: bool = False
    num_generated: int = 0
    num_cached: int = 0
    _feeds: list[asyncio.Task[None]] = field(default_factory=list)

    async def deltas(self) -> AsyncIterator[tuple[int, Delta]]:
        """(choice, delta) in the order of generation; what has queued up comes as one delta.

        Raises:
            ApiError: a choice ended in error, or the engine stopped.
        """
        source = _only(self.streams[0]) if len(self.streams) == 1 else self._interleaved()
        async for index, delta in source:
            self._count(index, delta)
            if self._num_open == 0:
                # Counted before the client can know: whoever then asks for statistics finds it.
                self.timer.finish("ok")
            yield index, delta
            if self._num_open == 0:
                return

    def fail(self) -> None:
        """Count the request as an error of ours."""
        self.timer.finish("error")

    async def close(self) -> None:
        """Stop whatever still runs; a request not counted so far was left by its client."""
        if self._is_closed:
            return
        self._is_closed = True
        self.lifecycle.answer_ended()
        self.timer.finish("aborted")
        for task in self._feeds:
            task.cancel()
        for stream in self.streams:
            await stream.aclose()

    def usage(self) -> dict[str, object]:
        """OpenAI's usage object, exact once all choices have ended."""
        return {
            "prompt_tokens": self.num_prompt_tokens,
            "completion_tokens": self.num_generated,
            "total_tokens": self.num_prompt_tokens + self.num_generated,
            "prompt_tokens_details": {"cached_tokens": self.num_cached},
        }

    def _count(self, index: int, delta: Delta) -> None:
        if delta.token_ids:
            self.num_generated += len(delta.token_ids)
            self.timer.tokens(len(delta.token_ids), index)
        if delta.finish_reason is None:
            return
        self._num_open -= 1
        if delta.timing is not None:
            self.num_cached += delta.timing.num_cached_tokens
            self.timer.timing(delta.timing)
        if delta.finish_reason == "error":
            self.timer.finish("error")
            log.error("answer %s, choice %d failed: %s", self.id, index, delta.error)
            raise ApiError(500, "The answer could not be generated.", code="generation_failed")
        if delta.finish_reason == "abort":
            self.timer.finish("error")
            raise _stopping()

    async def _interleaved(self) -> AsyncIterator[tuple[int, Delta]]:
        queue: asyncio.Queue[tuple[int, Delta]] = asyncio.Queue()

        async def feed(index: int, stream: AnswerStream) -> None:
            async for delta in stream:
                queue.put_nowait((index, delta))

        self._feeds = [asyncio.create_task(feed(i, s)) for i, s in enumerate(self.streams)]
        while True:
            index, delta = await queue.get()
            arrived = {index: [delta]}
            while not queue.empty():
                index, delta = queue.get_nowait()
                arrived.setdefault(index, []).append(delta)
            for index, deltas in arrived.items():
                yield index, merge(deltas)


def check_capacity(server: Server, target: Target) -> None:
    """Refuse what the engine would refuse anyway before its prompt costs anything.

    Raises:
        EngineOverloaded, EngineClosed: not now.
    """
    if server.lifecycle.is_draining:
        raise EngineClosed("The server is shutting down; send the request again.")
    num_answers, settings = server.lifecycle.num_answers, server.settings
    if num_answers >= settings.max_num_seqs + settings.max_queue:
        server.telemetry.rejected(target.adapter_id, target.arm_id)
        raise EngineOverloaded(
            f"{num_answers} requests are running or waiting, the limit is "
            f"{settings.max_num_seqs} + {settings.max_queue}.",
            retry_after_s=1.0,
        )


async def accept(server: Server, work: Work) -> Answer:
    """Hand all of ``work`` to the engine, or none of it.

    Raises:
        EngineOverloaded, EngineClosed: not now.
        AdapterRejected, Corrupt, …: the adapter cannot be made ready.
    """
    target = work.target
    answer_id = f"{work.id_prefix}-{uuid.uuid4().hex}"
    try:
        streams = await _submit_all(server, work, answer_id)
    except EngineOverloaded:
        server.telemetry.rejected(target.adapter_id, target.arm_id)
        raise
    except EngineClosed:
        raise
    except Exception:  # counted and raised on: an arm whose adapter breaks must show it
        server.telemetry.failed(target.adapter_id, target.arm_id)
        raise
    server.lifecycle.answer_began()
    server.feedback.note_answer(
        answer_id,
        model=target.model_id,
        experiment=target.experiment,
        arm=target.arm,
        subject=work.subject,
    )
    return Answer(
        id=answer_id,
        created=int(time.time()),
        model=target.model_id,
        fingerprint=fingerprint(server.base.fingerprint, target),
        headers=target.headers,
        num_prompt_tokens=sum(len(prompt) for prompt in work.prompts),
        streams=streams,
        _num_open=len(streams),
        timer=server.telemetry.begin(target.adapter_id, target.arm_id, work.received_at),
        lifecycle=server.lifecycle,
    )


async def _submit_all(server: Server, work: Work, answer_id: str) -> list[AnswerStream]:
    version = work.target.version
    if version is None:
        return await _submit(server, work, answer_id)
    async with server.adapters.lease(version):
        return await _submit(server, work, answer_id)


async def _submit(server: Server, work: Work, answer_id: str) -> list[AnswerStream]:
    streams: list[AnswerStream] = []
    try:
        for prompt in work.prompts:
            for _ in range(work.num_choices):
                streams.append(server.engine.submit(_request(work, answer_id, prompt, streams)))
    except Exception:
        for stream in streams:
            await stream.aclose()
        raise
    return streams


def _request(
    work: Work, answer_id: str, prompt: tuple[int, ...], before: list[AnswerStream]
) -> GenerationRequest:
    sampling, index = work.sampling, len(before)
    if sampling.seed is not None and index:
        # Choices with one seed would all be the same.
        sampling = replace(sampling, seed=(sampling.seed + index) % 2**63)
    return GenerationRequest(f"{answer_id}-{index}", prompt, sampling, work.target.adapter_key)


async def _only(stream: AnswerStream) -> AsyncIterator[tuple[int, Delta]]:
    async for delta in stream:
        yield 0, merge([delta, *stream.take_ready()])


def merge(deltas: list[Delta]) -> Delta:
    """Consecutive deltas of one answer as one."""
    last = deltas[-1]
    if len(deltas) == 1:
        return last
    return replace(
        last,
        text="".join(delta.text for delta in deltas),
        token_ids=tuple(token for delta in deltas for token in delta.token_ids),
        logprobs=tuple(logprob for delta in deltas for logprob in delta.logprobs),
    )


def _stopping() -> ApiError:
    message = "The server is shutting down; send the request again."
    headers = {"Retry-After": "2"}
    return ApiError(503, message, code="engine_closed", headers=headers)
