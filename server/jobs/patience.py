"""Jobs outlive a full disk and a locked database: what cannot be stored is tried until it can.

A job that has trained for hours must not end because somebody held the database for ten seconds.
Knows no job.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from artifacts.errors import StorageError
from server.trouble import Trouble

RETRY_S = 1.0
Result = TypeVar("Result")
IsOver = Callable[[], bool]


class Patience:
    """Shared by all jobs, so that they complain once."""

    def __init__(self) -> None:
        self.trouble = Trouble("jobs cannot be recorded; they wait for that")

    async def outlast(self, step: Callable[[], Awaitable[Result]], is_over: IsOver) -> Result:
        """The result of ``step``, which is repeated while it raises StorageError.

        Raises that StorageError once ``is_over``.
        """
        while True:
            try:
                result = await step()
            except StorageError as error:
                self.trouble.begin(error)
                if is_over():
                    raise
                await asyncio.sleep(RETRY_S)
            else:
                self.trouble.end()
                return result


def never() -> bool:
    """For what must succeed, however long it takes."""
    return False
