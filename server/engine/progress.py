"""What a new token means for its answer: text, thoughts, grammar, the end. No torch."""

from __future__ import annotations

from server.engine.request import FinishReason, TokenLogprob
from server.engine.scheduler import Chunk
from server.engine.sequence import Sequence


def advance(seq: Sequence, eos_token_ids: frozenset[int]) -> tuple[str, FinishReason | None]:
    """The text that became safe to send with the newest token, and how it ended the answer, if so.

    Raises GrammarTooComplex, and what a tokenizer may raise.
    """
    token, sampling = seq.token_ids[-1], seq.request.sampling
    if is_end_token(seq, eos_token_ids):
        return "", "stop"
    seq.follow(token)
    text = seq.output.push(token, check_stop=seq.num_generated >= sampling.min_tokens)
    has_said_all = seq.grammar is not None and not seq.is_thinking and seq.grammar.is_finished
    if seq.output.is_stopped or has_said_all:
        return text, "stop"
    return text, "length" if seq.num_generated >= sampling.max_tokens else None


def is_end_token(seq: Sequence, eos_token_ids: frozenset[int]) -> bool:
    """Whether the newest token ends the answer by itself; its text is not part of the answer."""
    sampling = seq.request.sampling
    if seq.num_generated < sampling.min_tokens:
        return False
    token = seq.token_ids[-1]
    is_eos = token in eos_token_ids and not sampling.ignore_eos
    return is_eos or token in sampling.stop_token_ids


def note_scores(chunk: Chunk, scores: tuple[TokenLogprob, ...]) -> None:
    """Keep the log-probabilities of prompt tokens; a repeated chunk has the same again."""
    chunk.seq.prompt_logprobs.update(zip((p + 1 for p in chunk.scored), scores, strict=True))


def prompt_logprobs(seq: Sequence) -> tuple[TokenLogprob | None, ...]:
    """Of the prompt's tokens in order, none for the first; said once, with the first new token."""
    if seq.request.sampling.prompt_logprobs is None or seq.num_generated != 1:
        return ()
    return (None, *(seq.prompt_logprobs[p] for p in range(1, seq.num_prompt)))
