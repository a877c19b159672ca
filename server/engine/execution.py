"""Run one step and, where it fails, find out who is to blame. No tensors.

A failing step changes no request's state, so it can simply be run again: in halves, until a culprit
is alone. A lack of memory is nobody's fault and is not narrowed: the chunks come back with
`OutOfMemory`, for the scheduler to try again with less.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from server.engine.errors import EngineError, OutOfMemory
from server.engine.request import Result
from server.engine.scheduler import Chunk

if TYPE_CHECKING:
    from server.engine.runner import BankRows, Runner

logger = logging.getLogger(__name__)

Outcome = tuple[Chunk, Result | Exception]
MAX_UNEXPLAINED_FAILURES = 2
FAILURE_MEMORY_S = 60.0  # long enough to be seen, short enough to come back without a restart


class Execution:
    """Steps of one runner, and whether they can be trusted."""

    def __init__(
        self,
        runner: Runner,
        place: Callable[[str | None], BankRows | None],
        clock: Callable[[], float],
    ) -> None:
        self._runner = runner
        self._place = place
        self._clock = clock
        self._unexplained: deque[float] = deque(maxlen=MAX_UNEXPLAINED_FAILURES)
        self._has_failed_whole = False  # the latest step, every request of it

    @property
    def is_healthy(self) -> bool:
        """False for a while after two failures that no single request explains."""
        since = self._clock() - FAILURE_MEMORY_S
        return sum(at > since for at in self._unexplained) < MAX_UNEXPLAINED_FAILURES

    def run(self, chunks: list[Chunk]) -> list[Outcome]:
        """Every chunk with its token, None where its prompt goes on, or its own exception."""
        try:
            outcomes = self._run(chunks)
        except OutOfMemory as error:
            logger.warning("no memory for a step of %d chunks: %s", len(chunks), error)
            return [(chunk, error) for chunk in chunks]
        except Exception as error:  # whatever a kernel may raise
            logger.warning("a step of %d chunks failed: %r", len(chunks), error)
            outcomes = self._narrow(chunks)
            self._judge(outcomes)
        else:
            self._has_failed_whole = False
        return outcomes

    def _narrow(self, chunks: list[Chunk]) -> list[Outcome]:
        """Run failed chunks again in halves; whoever fails alone keeps the exception."""
        try:
            return self._run(chunks)
        except OutOfMemory as error:
            return [(chunk, error) for chunk in chunks]
        except Exception as error:
            if len(chunks) == 1:
                return [(chunks[0], error)]
            half = len(chunks) // 2
            return self._narrow(chunks[:half]) + self._narrow(chunks[half:])

    def _judge(self, outcomes: list[Outcome]) -> None:
        """Count the failure against the engine unless a request is to blame.

        A request that fails alone is its own culprit. But if the steps of one request after the
        other fail, the requests are not what they have in common, unless the error is of a type of
        ours, which says what was wrong with the request.
        """
        failed = [result for _, result in outcomes if isinstance(result, Exception)]
        is_whole = len(failed) == len(outcomes)
        is_strange = is_whole and not isinstance(failed[0], EngineError)
        if not failed or (is_whole and len(failed) > 1) or (is_strange and self._has_failed_whole):
            self._unexplained.append(self._clock())
        self._has_failed_whole = is_strange

    def _run(self, chunks: list[Chunk]) -> list[Outcome]:
        places = [self._place(c.seq.request.adapter) for c in chunks]
        return list(zip(chunks, self._runner.execute(chunks, places), strict=True))
