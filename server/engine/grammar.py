"""What an answer may say: a compiled grammar, and where one answer stands in it.

llguidance does the work (Earley parsing over lexemes that are derivatives of regular expressions,
so that no expression backtracks). No torch: masks are bit fields of the vocabulary.
"""

from __future__ import annotations

import time

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from server.engine.errors import GrammarTooComplex

# Of one step of one answer; memory is bounded by the lexer's states, of 1 to 2 kB each. Compiling
# takes up to the square of ``initial_lexer_fuel``: expressions doubled 13 times take 0.6 s and
# 135 MB, 16 times 13 GB. A schema of 100 kB takes 25,000.
LIMITS = LLParserLimits(
    initial_lexer_fuel=32_000,
    step_lexer_fuel=60_000,
    step_max_items=30_000,
    max_items_in_row=2_500,  # a schema of 600 optional properties has 2,400
    max_lexer_states=20_000,
    max_grammar_size=500_000,
    verbose_errors=False,
)
# What an answer may take of the engine's time for its grammar: others wait meanwhile. Ambiguous
# grammars take more with every token, unambiguous ones some 0.05 ms.
CREDIT_S = 0.1
SHARE_S = 0.001  # for each token


class InvalidGrammar(Exception):
    """A grammar that does not compile. The message is llguidance's."""


class Grammar:
    """A compiled grammar, shared by all answers that follow it. Safe from many threads.

    ``text`` is in llguidance's Lark dialect, or its JSON form. Compiling takes up to a second for
    the largest and lets other threads run. Raises InvalidGrammar.
    """

    def __init__(self, tokenizer: LLTokenizer, text: str) -> None:
        self._matcher = LLMatcher(tokenizer, text, limits=LIMITS, log_level=0)
        # The first mask takes longest: here nobody else waits for it.
        self._first_mask = b"" if self._matcher.is_error() else self._matcher.compute_bitmask()
        if self._matcher.is_error():
            raise InvalidGrammar(_problem(self._matcher))

    def start(self) -> GrammarState:
        """The state of a new answer."""
        return GrammarState(self._matcher.deep_copy(), self._first_mask)


class GrammarState:
    """Where one answer stands. ``mask`` holds one bit for each token id, lowest first in each byte:
    the tokens that may come next, ends of the answer among them. Used by one thread at a time."""

    def __init__(self, matcher: LLMatcher, mask: bytes) -> None:
        self._matcher = matcher
        self._left_s = CREDIT_S
        self.mask = mask

    @property
    def is_finished(self) -> bool:
        """Nothing can follow."""
        return self._matcher.is_stopped()

    def advance(self, token_id: int) -> None:
        """``token_id`` has come. Raises GrammarTooComplex."""
        started = time.thread_time()  # what others take of the machine is not this answer's fault
        self._matcher.consume_token(token_id)
        if not self._matcher.is_stopped():
            self.mask = self._matcher.compute_bitmask()
        self._left_s += SHARE_S - (time.thread_time() - started)
        if self._matcher.is_error():
            raise GrammarTooComplex(
                f"the answer cannot go on under its grammar: {_problem(self._matcher)}"
            )
        if self._left_s < 0:
            raise GrammarTooComplex(
                f"the grammar takes more than {1000 * SHARE_S:g} ms for each token of the answer; "
                "make it less ambiguous"
            )


def _problem(matcher: LLMatcher) -> str:
    """What llguidance says is wrong, in words that a client can use."""
    text = matcher.get_error().removesuffix("<non-verbose/>").strip()
    return "it admits no text at all" if text == "NoExtensionBias" else text
