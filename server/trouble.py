"""Says once that something fails and once that it works again; remembers why. No logic of its own.

A fault that lasts would otherwise fill the log, or hide in it.
"""

from __future__ import annotations

import logging

log = logging.getLogger("loraloop.server")


class Trouble:
    """``what`` is the sentence's beginning: "answers cannot be recorded". Any thread."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.reason: str | None = None  # None: all is well. It names places on this machine.

    def begin(self, error: Exception) -> None:
        """It failed."""
        is_new, self.reason = self.reason is None, str(error)
        if is_new:
            log.error("%s: %s", self.what, error)

    def end(self) -> None:
        """It worked."""
        if self.reason is not None:
            self.reason = None
            log.warning("it works again: no longer %s", self.what)
