"""What an answer may say: a compiled grammar, and where one answer stands in it.

llguidance does the work (Earley parsing over lexemes that are derivatives of regular expressions,
so that no expression backtracks). No torch: masks are bit fields of the vocabulary.
"""

from __future__ import annotations

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

# One step of one answer may cost a few milliseconds at most, since others wait for it; memory is
# bounded by the lexer's states, of 1 to 2 kB each.
LIMITS = LLParserLimits(
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=60_000,
    step_max_items=30_000,
    max_lexer_states=20_000,
    max_grammar_size=500_000,
    verbose_errors=False,
)


class InvalidGrammar(Exception):
    """A grammar that does not compile. The message is llguidance's."""


class GrammarTooComplex(Exception):
    """A step took more than `LIMITS` allow, or the grammar has no way on."""


class Grammar:
    """A compiled grammar, shared by all answers that follow it. Safe from many threads.

    ``text`` is in llguidance's Lark dialect, or its JSON form. Compiling takes up to a second for
    the largest and lets other threads run. Raises InvalidGrammar.
    """

    def __init__(self, tokenizer: LLTokenizer, text: str) -> None:
        self._tokenizer = tokenizer
        self._matcher = LLMatcher(tokenizer, text, limits=LIMITS, log_level=0)
        if self._matcher.is_error():
            raise InvalidGrammar(self._matcher.get_error())

    def start(self) -> GrammarState:
        """The state of a new answer."""
        return GrammarState(self._matcher.deep_copy(), self._tokenizer.vocab_size)


class GrammarState:
    """Where one answer stands. Engine thread only."""

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size

    @property
    def is_finished(self) -> bool:
        """Nothing can follow."""
        return self._matcher.is_stopped()

    def allowed(self) -> bytes:
        """One bit for each token id, lowest first in each byte: the tokens that may come next.

        Raises:
            GrammarTooComplex: it cannot be said within the limits.
        """
        mask = self._matcher.compute_bitmask()
        self._check()
        return mask

    def advance(self, token_id: int) -> None:
        """``token_id`` has come. Raises GrammarTooComplex."""
        self._matcher.consume_token(token_id)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GrammarTooComplex(self._matcher.get_error())
