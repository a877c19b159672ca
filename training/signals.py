"""How SIGTERM, SIGINT and SIGHUP end a run. Knows nothing of what is being run.

SIGHUP is a closed terminal, or the kernel's word to a stopped run whose server was killed; under
nohup it stays ignored.

While training, the first signal only leaves a note, so that the step ends in a checkpoint; a second
one insists. Elsewhere a signal raises ``Interrupted`` at once. Once a version is being published,
signals are ignored: that takes milliseconds, and its outcome must be told.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Literal

from training.errors import Interrupted

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class StopRequest:
    """Whether somebody asked this run to end; the training loop polls ``is_set``."""

    def __init__(self) -> None:
        self.is_set = False
        self._reaction: Literal["raise", "note", "ignore"] = "raise"

    def ask(self) -> None:
        """Asks without a signal; never raises."""
        self.is_set = True

    def check(self) -> None:
        """Raises Interrupted if somebody asked."""
        if self.is_set:
            raise Interrupted

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Takes over the signals and gives them back."""
        is_nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        numbers = [n for n in _SIGNALS if not (is_nohup and n == signal.SIGHUP)]
        previous = [signal.signal(number, self._on_signal) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, previous, strict=True):
                signal.signal(number, handler)

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Inside, the first signal only sets ``is_set``."""
        self._reaction = "note"
        try:
            yield
        finally:
            self._reaction = "raise"

    def ignore(self) -> None:
        """From here on no signal has an effect: the outcome is decided and must be told."""
        self._reaction = "ignore"

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        insists = self.is_set
        self.is_set = True
        if self._reaction == "raise" or (self._reaction == "note" and insists):
            raise Interrupted
