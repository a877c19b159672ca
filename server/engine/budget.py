"""How many tokens a step may have: what the operator set, less for a while when memory ran out."""

from __future__ import annotations

FIRST_PATIENCE, MAX_PATIENCE = 32, 1024  # steps


class StepBudget:
    """Halves when a step runs out of memory, and doubles again after a number of good steps.

    How many grows with every lack of memory, so that a lasting one costs fewer and fewer failed
    steps.
    """

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self.num_tokens = max_tokens
        self._patience = FIRST_PATIENCE
        self._num_good = 0

    def shrink(self, num_tokens: int) -> None:
        """``num_tokens`` in one step were too many."""
        self.num_tokens = max(1, min(num_tokens, self.num_tokens) // 2)
        self._patience = min(2 * self._patience, MAX_PATIENCE)
        self._num_good = 0

    def note_good_step(self) -> None:
        if self.num_tokens == self.max_tokens:
            return
        self._num_good += 1
        if self._num_good >= self._patience:
            self._num_good = 0
            self.num_tokens = min(2 * self.num_tokens, self.max_tokens)
            if self.num_tokens == self.max_tokens:
                self._patience = FIRST_PATIENCE
