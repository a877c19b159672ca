"""The engine: one thread that schedules, executes, updates and publishes, step after step.

Requests enter from an asyncio loop (`Engine.submit`) and come back as `AnswerStream`s. The engine
thread owns all sequences; other threads only put commands into its queue. Knows no HTTP, and no
torch: tensors are the runner's affair.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING

from server.engine.blocks import BlockPool
from server.engine.errors import (
    EngineClosed,
    EngineError,
    EngineOverloaded,
    GrammarTooComplex,
    OutOfMemory,
    RequestTooLong,
)
from server.engine.execution import Execution, Outcome
from server.engine.output import Decode, OutputText
from server.engine.progress import advance, note_scores, prompt_logprobs
from server.engine.request import (
    Delta,
    EngineStats,
    FinishReason,
    GenerationRequest,
    Sampled,
    TokenLogprob,
)
from server.engine.residency import AdapterResidency
from server.engine.scheduler import Scheduler
from server.engine.sequence import Sequence
from server.engine.slots import AdapterSlots
from server.engine.spec import EngineSpec
from server.engine.stream import AnswerStream, publish

if TYPE_CHECKING:
    from artifacts.adapter import LoraWeights
    from server.engine.bank import PackedAdapter
    from server.engine.runner import Runner

logger = logging.getLogger(__name__)


class Engine:
    """Continuous batching over one base and its adapters.

    Args:
        decode: tokenizer's decoding, special tokens left out.
        pack: brings LoRA weights into the bank's layout.
        clock: seconds, as ``time.perf_counter`` counts them.
    """

    def __init__(
        self,
        spec: EngineSpec,
        runner: Runner,
        decode: Decode,
        pack: Callable[[LoraWeights], PackedAdapter],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.spec = spec
        self._clock = clock
        self._runner = runner
        self._decode = decode
        self._pack = pack
        self._blocks = BlockPool(spec.num_blocks, spec.block_size, spec.shares_prefixes)
        slots = AdapterSlots(spec.max_resident_adapters, spec.num_adapter_rows)
        self._adapters = AdapterResidency(slots, runner.write_adapter)
        self._scheduler = Scheduler(spec.scheduler, self._blocks, self._adapters)
        self._execution = Execution(runner, self._adapters.place, clock)
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._open: dict[str, tuple[Sequence, AnswerStream]] = {}  # engine thread only
        self._open_ids: set[str] = set()  # submitted and not yet ended; under the lock
        self._submit_lock = threading.Lock()
        self._is_closed = False
        self._is_idle = True
        self._num_steps = 0
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def max_model_len(self) -> int:
        """Tokens that a prompt and its answer may have together."""
        return self.spec.capacity

    @property
    def kv_tokens(self) -> int:
        """Tokens that all running requests may have together."""
        return self.spec.num_blocks * self.spec.block_size

    @property
    def kernels(self) -> str:
        return self.spec.kernels

    @property
    def max_rank(self) -> int:
        return self.spec.max_rank

    @property
    def vocab_size(self) -> int:
        return self.spec.vocab_size

    # --- life -----------------------------------------------------------------------------------

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Abort what still runs and end the thread. Draining before is the caller's choice."""
        self._close()
        if self._thread.is_alive():
            self._thread.join()

    # --- requests (event loop) ------------------------------------------------------------------

    def submit(self, request: GenerationRequest) -> AnswerStream:
        """Accept a request, which from now on ends in exactly one last delta.

        Raises:
            EngineClosed, EngineOverloaded, RequestTooLong, UnknownAdapter: nothing was accepted.
        """
        self._check_length(request)
        stream = AnswerStream(request.request_id, self.abort)
        output = OutputText(self._decode, request.sampling.stop)
        seq = Sequence(request, output, self._clock())
        with self._submit_lock:
            self._check_open()
            assert request.request_id not in self._open_ids, f"{request.request_id} is not unique"
            num_open = len(self._open_ids)
            if num_open >= self.spec.scheduler.max_num_seqs + self.spec.max_queue:
                raise EngineOverloaded(
                    f"{num_open} requests are running or waiting, the limit is "
                    f"{self.spec.scheduler.max_num_seqs} + {self.spec.max_queue}",
                    retry_after_s=1.0,
                )
            if request.adapter is not None:
                self._adapters.retain(request.adapter)
            self._open_ids.add(request.request_id)
            self._commands.put(lambda: self._accept(seq, stream))
        return stream

    def abort(self, request_id: str) -> None:
        """End a request with ``abort``; nothing happens if it has ended already. Any thread."""
        self._commands.put(lambda: self._abort(request_id))

    def abort_waiting(self) -> None:
        """End with ``abort`` what has not been scheduled yet. Any thread."""
        self._commands.put(self._abort_waiting)

    def _check_length(self, request: GenerationRequest) -> None:
        num_prompt, max_tokens = len(request.prompt_ids), request.sampling.max_tokens
        spec = self.spec
        if num_prompt == 0:
            raise RequestTooLong("the prompt has no tokens")
        if num_prompt + max_tokens <= spec.capacity:
            return
        limit = f"the context is {spec.capacity} tokens"
        if spec.capacity < spec.max_model_len:
            limit = (
                f"the KV cache holds {spec.capacity} tokens, less than the context of "
                f"{spec.max_model_len} (raise kv_cache_tokens)"
            )
        raise RequestTooLong(
            f"the prompt has {num_prompt} tokens and max_tokens is {max_tokens}, together "
            f"{num_prompt + max_tokens}; {limit}"
        )

    # --- adapters -------------------------------------------------------------------------------

    def add_adapter(self, key: str, weights: LoraWeights) -> None:
        """Make an adapter known under its content hash. Any thread; copies the weights."""
        self._adapters.add(key, self._pack(weights))

    async def preload_adapter(self, key: str) -> float:
        """Make a known adapter resident now rather than at its first request; seconds it took."""
        started = time.perf_counter()
        done: Future[None] = Future()
        done.set_running_or_notify_cancel()  # a client that leaves cannot cancel it any more
        self._command(lambda: self._adapters.preload(key, done))
        await asyncio.wrap_future(done)
        return time.perf_counter() - started

    async def remove_adapter(self, key: str, *, wait: bool = True) -> None:
        """Forget an adapter once its open requests have ended; new ones are refused at once.

        Raises:
            UnknownAdapter: it is not known.
            AdapterInUse: ``wait`` is False and requests are open.
        """
        done = self._adapters.remove(key, wait=wait)
        self._command(lambda: None)
        await asyncio.wrap_future(done)

    def known_adapters(self) -> set[str]:
        return self._adapters.known()

    def stats(self) -> EngineStats:
        return EngineStats(
            num_running=len(self._scheduler.running),
            num_waiting=max(len(self._open_ids) - len(self._scheduler.running), 0),
            kv_blocks_total=self.spec.num_blocks,
            kv_blocks_free=self._blocks.num_free,
            kv_bytes=self.spec.kv_bytes,
            resident_adapters=self._adapters.resident_bytes(),
            pinned_adapters=self._adapters.pins(),
            num_steps=self._num_steps,
            num_forward_passes=self._runner.num_forward_passes,
            num_preemptions=self._scheduler.num_preemptions,
            num_suspensions=self._scheduler.num_suspensions,
            num_displacements=self._scheduler.num_displacements,
            num_adapter_writes=self._adapters.num_writes,
            is_healthy=not self._is_closed and self._execution.is_healthy,
        )

    def _command(self, command: Callable[[], None]) -> None:
        with self._submit_lock:
            self._check_open()
            self._commands.put(command)

    def _check_open(self) -> None:
        if self._is_closed:
            raise EngineClosed("the engine is shutting down")

    def _close(self) -> None:
        """From here on nothing is accepted; what was accepted before lies in the queue."""
        with self._submit_lock:
            self._is_closed = True
            self._commands.put(lambda: None)

    # --- engine thread --------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._is_closed:
                self._take_commands()
                self._step()
        except BaseException:  # a bug of ours: end every request rather than leave it hanging
            logger.exception("the engine thread died")
            self._close()
            self._end_all("error", "the engine failed; see the server's log")
        else:
            self._end_all("abort", None)

    def _step(self) -> None:
        self._adapters.begin_step(is_busy=bool(self._scheduler.running))
        self._adapters.collect()
        chunks = self._scheduler.schedule(self._clock())
        publish(self._end_unplaceable())
        self._is_idle = not chunks
        if not chunks:
            return
        outcomes = self._execution.run(chunks)
        deltas = self._update(outcomes)
        self._num_steps += 1
        publish(deltas)

    def _take_commands(self) -> None:
        """Run all waiting commands; sleep for the next one while there is nothing to compute."""
        if self._is_idle:
            # Someone may wait for a place that only a later removal or preload frees: look again.
            is_wanted = self._scheduler.has_unscheduled or self._adapters.has_preloads
            timeout = 0.01 if is_wanted else None
            with contextlib.suppress(queue.Empty):
                self._commands.get(timeout=timeout)()
        while True:
            try:
                self._commands.get_nowait()()
            except queue.Empty:
                break

    def _accept(self, seq: Sequence, stream: AnswerStream) -> None:
        self._open[seq.request.request_id] = (seq, stream)
        self._scheduler.add(seq)

    def _abort(self, request_id: str) -> None:
        if request_id in self._open:
            seq, stream = self._open[request_id]
            publish([(stream, self._end(seq, "abort"))])

    def _abort_waiting(self) -> None:
        for request_id, (seq, _) in [*self._open.items()]:
            if seq.first_scheduled_at is None:
                self._abort(request_id)

    def _end_unplaceable(self) -> list[tuple[AnswerStream, Delta]]:
        """Requests whose adapter could not be written into the bank."""
        deltas = []
        for seq, error in self._scheduler.failed:
            _, stream = self._open[seq.request.request_id]
            deltas.append((stream, self._end(seq, "error", error=error)))
        self._scheduler.failed.clear()
        return deltas

    def _update(self, outcomes: list[Outcome]) -> list[tuple[AnswerStream, Delta]]:
        deltas: list[tuple[AnswerStream, Delta]] = []
        num_starved = sum(c.num_tokens for c, r in outcomes if isinstance(r, OutOfMemory))
        for chunk, result in outcomes:
            if isinstance(result, OutOfMemory) and num_starved > 1:
                continue  # tried again in a smaller step
            seq, stream = self._open[chunk.seq.request.request_id]
            if isinstance(result, Exception):
                self._runner.scrub(self._blocks.withdraw(seq))
                deltas.append((stream, self._end(seq, "error", error=result)))
                continue
            if result is not None:
                note_scores(chunk, result.prompt)
            if isinstance(result, Sampled):
                self._scheduler.update(chunk, result.token_id)
                deltas.append((stream, self._advance(seq, result.logprob)))
            else:
                self._scheduler.update(chunk, None)
        if num_starved > 1:
            self._scheduler.shrink(num_starved)
        elif not num_starved:
            self._scheduler.budget.note_good_step()
        return deltas

    def _advance(self, seq: Sequence, logprob: TokenLogprob | None) -> Delta:
        """Turn a sequence's newest token into text, and end the sequence where it ends."""
        if seq.first_token_at is None:
            seq.first_token_at = self._clock()
        logprobs = () if logprob is None else (logprob,)
        token_ids = (seq.token_ids[-1],)
        try:
            text, reason = advance(seq, self.spec.eos_token_ids)
            if reason is not None:
                delta = self._end(seq, reason, text=text, token_ids=token_ids, logprobs=logprobs)
            else:
                delta = Delta(seq.request.request_id, text, token_ids, logprobs)
        except EngineError as error:
            return self._end(seq, "error", error=error)
        except BaseException as error:  # a tokenizer that fails, or panics, fails one answer
            logger.exception("decoding the answer of %s failed", seq.request.request_id)
            return self._end(seq, "error", error=error)
        if scored := prompt_logprobs(seq):
            return replace(delta, prompt_logprobs=scored)
        return delta

    def _end(
        self,
        seq: Sequence,
        reason: FinishReason,
        *,
        text: str = "",
        token_ids: tuple[int, ...] = (),
        logprobs: tuple[TokenLogprob, ...] = (),
        error: BaseException | str | None = None,
    ) -> Delta:
        """Free all a sequence holds and make its last delta."""
        if reason in ("stop", "length"):
            text += seq.output.finish()
        self._scheduler.finish(seq)
        del self._open[seq.request.request_id]
        if seq.request.adapter is not None:
            self._adapters.release(seq.request.adapter)
        with self._submit_lock:
            self._open_ids.remove(seq.request.request_id)
        timing = seq.timing(self._clock())
        cause = error if isinstance(error, GrammarTooComplex) else None
        said = _explain(error) if isinstance(error, BaseException) else error
        return Delta(seq.request.request_id, text, token_ids, logprobs, reason, said, cause, timing)

    def _end_all(self, reason: FinishReason, error: str | None) -> None:
        while True:  # requests accepted a moment before closing are ended too
            try:
                self._commands.get_nowait()()
            except queue.Empty:
                break
        publish(
            [
                (stream, self._end(seq, reason, error=error))
                for seq, stream in [*self._open.values()]
            ]
        )
        self._adapters.fail_waiting(EngineClosed("the engine is shutting down"))


def _explain(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
