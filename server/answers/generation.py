"""One accepted request: its engine streams, its clock, its end. Knows no wire format.

``accept`` does everything that can be refused; what it returns has been accepted by the engine and
must be closed by whoever sends the answer, on every path.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from artifacts.errors import NotFound
from server.answers.admission import Ticket
from server.answers.deadline import Deadline, DeadlinePassed
from server.answers.pieces import ParserFactory, PlainParser
from server.answers.scoring import ScoringStream
from server.engine.errors import EngineClosed, EngineOverloaded
from server.engine.request import Delta, GenerationRequest, SamplingParams
from server.errors import RETRY_AFTER_S, ApiError, to_api_error
from server.reporting.telemetry import Outcome, RequestTimer
from server.resolve import Target, fingerprint
from server.state import AnswerStream, Lifecycle, Server

log = logging.getLogger("loraloop.server")

Arrived = list[tuple[int, Delta]]  # choice, delta
_LATER = {"Retry-After": str(RETRY_AFTER_S)}


@dataclass(frozen=True, slots=True)
class Work:
    """A validated request: ``num_choices`` answers to each of ``prompts``."""

    target: Target
    prompts: tuple[tuple[int, ...], ...]
    sampling: SamplingParams
    num_choices: int
    subject: str | None
    received_at: float  # time.perf_counter
    id_prefix: str
    ticket: Ticket
    priority: int = 0
    cache_salt: str = ""
    parser: ParserFactory = PlainParser  # of each choice's text
    is_scoring: bool = False  # the prompts' logprobs are all that is wanted


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
    ticket: Ticket
    num_open: int  # choices whose end has not been taken
    num_generated: int = 0
    num_cached: int = 0
    num_thinking: int = 0  # of the generated tokens
    num_unread: int = 0  # tokens that have arrived and were not taken
    on_arrival: Callable[[], None] | None = None
    _failure: ApiError | None = None
    _expiry: asyncio.TimerHandle | None = None
    _is_closed: bool = False
    _arrived: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        for stream in self.streams:
            stream.listen(self._note)

    async def arrivals(self) -> Arrived:
        """What has arrived since the last call: (choice, delta), one delta for each choice.

        Empty once all choices have ended. Nothing is lost if this is cancelled.

        Raises:
            ApiError: a choice ended in error, the engine stopped, or the answer was cancelled.
        """
        while self.num_open:
            if self._failure is not None:
                raise self._failure
            self._arrived.clear()
            if arrived := self._take():
                return arrived
            await self._arrived.wait()
        return []

    @property
    def failure(self) -> ApiError | None:
        """What the next ``arrivals`` raises."""
        return self._failure

    def cancel(self, error: ApiError, outcome: Outcome = "error") -> None:
        """Stop generating from outside: ``arrivals`` raises ``error``, the answer counts as
        ``outcome``. Nothing happens to an answer whose end has been taken."""
        if self._failure is not None or self.num_open == 0:
            return
        self._failure = error
        self.timer.finish(outcome)
        self._stop()
        self._arrived.set()

    def end_by(self, deadline: Deadline) -> None:
        """Cancel the answer as timed out unless it is closed by then."""
        loop, error = asyncio.get_running_loop(), DeadlinePassed(deadline.limit_s)
        self._expiry = loop.call_later(deadline.left_s, self.cancel, error, "timed_out")

    def fail(self) -> None:
        """Count the request as an error of ours."""
        self.timer.finish("error")

    async def close(self) -> None:
        """Stop whatever still runs; a request not counted so far was left by its client."""
        if self._is_closed:
            return
        self._is_closed = True
        self.lifecycle.answer_ended()
        self.ticket.leave()
        self.timer.finish("aborted")
        self._stop()
        if self._expiry is not None:
            self._expiry.cancel()

    def usage(self) -> dict[str, object]:
        """OpenAI's usage object, exact once all choices have ended."""
        return {
            "prompt_tokens": self.num_prompt_tokens,
            "completion_tokens": self.num_generated,
            "total_tokens": self.num_prompt_tokens + self.num_generated,
            "prompt_tokens_details": {"cached_tokens": self.num_cached},
            "completion_tokens_details": {"reasoning_tokens": self.num_thinking},
        }

    def _note(self, delta: Delta) -> None:
        self.num_unread += len(delta.token_ids)
        self.ticket.begin()
        self._arrived.set()
        if self.on_arrival is not None:
            self.on_arrival()

    def _stop(self) -> None:
        for stream in self.streams:
            stream.stop()
        self.num_unread = 0

    def _take(self) -> Arrived:
        taken: Arrived = []
        for index, stream in enumerate(self.streams):
            if ready := stream.take_ready():
                delta = merge(ready)
                self._count(index, delta)
                if delta.finish_reason in ("error", "abort"):
                    delta = replace(delta, finish_reason=None)  # its text was generated before
                is_news = delta.text or delta.token_ids or delta.prompt_logprobs
                if is_news or delta.finish_reason is not None:
                    taken.append((index, delta))
            if self._failure is not None:
                break  # the others have been stopped
        if self.num_open == 0:
            # Counted before the client can know: whoever then asks for statistics finds it.
            self.timer.finish("ok")
        return taken

    def _count(self, index: int, delta: Delta) -> None:
        if delta.token_ids:
            self.num_unread -= len(delta.token_ids)
            self.num_generated += len(delta.token_ids)
            self.timer.tokens(len(delta.token_ids), index)
        if delta.timing is not None:
            self.num_cached += delta.timing.num_cached_tokens
            self.num_thinking += delta.timing.num_thinking_tokens
            self.timer.timing(delta.timing)
        if delta.finish_reason == "error" and delta.cause is not None:
            log.info("answer %s, choice %d was ended: %s", self.id, index, delta.error)
            self.cancel(to_api_error(delta.cause) or _failed(), "aborted")
        elif delta.finish_reason == "error":
            log.error("answer %s, choice %d failed: %s", self.id, index, delta.error)
            self.cancel(_failed())
        elif delta.finish_reason == "abort":  # by the engine: whoever aborts here listens no more
            self.cancel(_stopping())
        elif delta.finish_reason is not None:
            self.num_open -= 1


def claim_places(
    server: Server, ticket: Ticket, target: Target, num_answers: int, num_characters: int
) -> None:
    """Refuse what has no room before its prompts, of that many characters, cost anything.

    Raises:
        EngineOverloaded, EngineClosed, ApiError: not now.
    """
    if server.lifecycle.is_draining:
        raise EngineClosed("The server is shutting down; send the request again.")
    adapter = None if target.version is None else target.version.name
    try:
        ticket.claim(adapter, num_answers, num_characters)
    except (EngineOverloaded, ApiError):
        server.telemetry.rejected(target.adapter_id, target.arm_id)
        raise


async def accept(server: Server, work: Work, deadline: Deadline) -> Answer:
    """Hand all of ``work`` to the engine, or none of it.

    Raises:
        DeadlinePassed: there was no time left for an adapter to be read.
        EngineOverloaded, EngineClosed: not now.
        AdapterRejected, Corrupt, …: the adapter cannot be made ready.
    """
    target = work.target
    answer_id = f"{work.id_prefix}{uuid.uuid4().hex}"
    try:
        work.ticket.settle(work.num_choices * sum(map(len, work.prompts)))
        async with deadline.enforced():
            streams = await _submit_all(server, work, answer_id)
    except DeadlinePassed:
        server.telemetry.failed(target.adapter_id, target.arm_id, "timed_out")
        raise
    except EngineOverloaded:
        server.telemetry.rejected(target.adapter_id, target.arm_id)
        raise
    except (EngineClosed, NotFound):  # removed meanwhile: as if it had never been asked
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
    answer = Answer(
        id=answer_id,
        created=int(time.time()),
        model=target.model_id,
        fingerprint=fingerprint(server.base.fingerprint, target),
        headers=target.headers,
        num_prompt_tokens=sum(len(prompt) for prompt in work.prompts),
        streams=streams,
        num_open=len(streams),
        timer=server.telemetry.begin(target.adapter_id, target.arm_id, work.received_at),
        lifecycle=server.lifecycle,
        ticket=work.ticket,
    )
    answer.end_by(deadline)
    return answer


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
                stream = server.engine.submit(_request(work, answer_id, prompt, streams))
                streams.append(ScoringStream(stream) if work.is_scoring else stream)
    except Exception:
        for stream in streams:
            stream.stop()
        raise
    return streams


def _request(
    work: Work, answer_id: str, prompt: tuple[int, ...], before: list[AnswerStream]
) -> GenerationRequest:
    sampling, index = work.sampling, len(before)
    if sampling.seed is not None and index:
        # Choices with one seed would all be the same.
        sampling = replace(sampling, seed=(sampling.seed + index) % 2**63)
    name, share = f"{answer_id}-{index}", work.ticket.share
    return GenerationRequest(
        name,
        prompt,
        sampling,
        work.target.adapter_key,
        share,
        priority=work.priority,
        cache_salt=work.cache_salt,
    )


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
        prompt_logprobs=deltas[0].prompt_logprobs,
    )


def _stopping() -> ApiError:
    message = "The server is shutting down; send the request again."
    return ApiError(503, message, code="engine_closed", headers=_LATER)


def _failed() -> ApiError:
    message = "The answer could not be generated."
    return ApiError(500, message, code="generation_failed", headers=_LATER)
