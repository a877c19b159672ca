"""Prompts whose number of tokens is known, for a server whose tokenizer is not.

The server itself counts: short probes show how many tokens each letter with a space before it
costs, and how many the chat template adds. Letters of equal cost then make prompts of any length.
Every prompt is drawn anew, so no prefix cache can help.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

LETTERS = "abcdefghiklmnoprstu"
PROBE = 32  # repetitions: enough that rounding cannot hide a merge
MIN_LETTERS = 4


class Uncountable(Exception):
    """The server's count of prompt tokens does not grow evenly with any set of letters."""


@dataclass(frozen=True)
class PromptMaker:
    """Makes prompts of ``overhead + n * cost`` tokens."""

    letters: str
    cost: int  # tokens per letter with its space
    overhead: int  # tokens of the chat template

    def make(self, num_tokens: int, source: random.Random) -> str:
        """A random prompt of ``num_tokens``, or up to ``cost - 1`` fewer."""
        num_letters = (num_tokens - self.overhead) // self.cost
        if num_letters < 1:
            raise ValueError(
                f"a prompt of {num_tokens} tokens is too short: the chat template alone has "
                f"{self.overhead}"
            )
        return "".join(f" {source.choice(self.letters)}" for _ in range(num_letters))


def calibrate(count: Callable[[str], int]) -> PromptMaker:
    """Learn letters and costs; ``count(text)`` is the server's number of prompt tokens for it.

    Raises:
        Uncountable: fewer than four letters have the same whole cost.
    """
    single, double = count(f" {LETTERS[0]}" * PROBE), count(f" {LETTERS[0]}" * PROBE * 2)
    overhead = 2 * single - double
    costs = {LETTERS[0]: single - overhead}
    for letter in LETTERS[1:]:
        costs[letter] = count(f" {letter}" * PROBE) - overhead
    whole = Counter(cost // PROBE for cost in costs.values() if cost > 0 and cost % PROBE == 0)
    # The cheapest cost that enough letters share: then lengths can be met most closely.
    shared = sorted(cost for cost, number in whole.items() if number >= MIN_LETTERS)
    if not shared:
        raise Uncountable(
            f"the server's prompt_tokens do not grow evenly: {costs} for {PROBE} repetitions "
            f"beside {overhead} tokens of template"
        )
    letters = "".join(a for a, cost in costs.items() if cost == shared[0] * PROBE)
    return PromptMaker(letters, shared[0], overhead)
