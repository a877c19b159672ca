"""How many tokens a step may have: what the operator set, less for a while when memory ran out.

And how they are shared out.
"""

from __future__ import annotations

from server.engine.sequence import Sequence

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


class StepPlan:
    """Who gets how many tokens of one step, while that is decided."""

    def __init__(self) -> None:
        self.tokens: dict[Sequence, int] = {}
        self.num_tokens = 0
        self.num_prompt = 0  # of them, of prompts
        self.num_scored = 0  # of those, whose log-probabilities are wanted
        self.is_closed = False  # to newcomers: blocks are short, and those behind could take them

    def give(self, seq: Sequence, num_tokens: int) -> None:
        self.tokens[seq] = num_tokens
        self._count(seq, num_tokens, 1)

    def take_back(self, seq: Sequence) -> int:
        """All that ``seq`` was given."""
        num_tokens = self.tokens.pop(seq, 0)
        self._count(seq, num_tokens, -1)
        return num_tokens

    def _count(self, seq: Sequence, num_tokens: int, sign: int) -> None:
        self.num_scored += sign * num_tokens if seq.is_unscored else 0
        self.num_tokens += sign * num_tokens
        self.num_prompt += sign * num_tokens if num_tokens > 1 else 0
