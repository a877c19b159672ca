"""How long a request may take, from its receipt to the end of its answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Header, Request

from server.deps import ServerDep
from server.errors import ApiError

# In seconds for the whole answer, as LiteLLM's x-litellm-timeout. OpenAI's clients send
# x-stainless-read-timeout by themselves; that is about the silence between two chunks.
TIMEOUT_HEADER = "x-request-timeout"


class DeadlinePassed(ApiError):
    """The time for a request is over."""

    def __init__(self, limit_s: float) -> None:
        super().__init__(
            408,
            f"The answer was not finished {limit_s:g} s after the request came in. Ask for fewer "
            f"tokens, or allow more time ({TIMEOUT_HEADER}, LORALOOP_MAX_REQUEST_S).",
            code="request_timeout",
            # OpenAI's clients would try a 408 again, and it would only take as long again.
            headers={"x-should-retry": "false"},
        )


@dataclass(frozen=True, slots=True)
class Deadline:
    """The operator's limit, or the client's own if that is shorter."""

    limit_s: float
    received_at: float  # time.perf_counter

    @property
    def left_s(self) -> float:
        return self.received_at + self.limit_s - time.perf_counter()

    @asynccontextmanager
    async def enforced(self) -> AsyncIterator[None]:
        """Cut short what is inside when the time is over. Raises DeadlinePassed."""
        try:
            async with asyncio.timeout(self.left_s) as timeout:
                yield
        except TimeoutError:
            if timeout.expired():
                raise DeadlinePassed(self.limit_s) from None
            raise


async def _deadline(
    request: Request,
    server: ServerDep,
    x_request_timeout: Annotated[
        float | None,
        Header(gt=0, allow_inf_nan=False, description="seconds that the whole answer may take"),
    ] = None,
) -> Deadline:
    limit_s = server.settings.max_request_s
    if x_request_timeout is not None:
        limit_s = min(limit_s, x_request_timeout)
    return Deadline(limit_s, request.state.received_at)


DeadlineDep = Annotated[Deadline, Depends(_deadline)]
