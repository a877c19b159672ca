"""From logits to tokens, each row by its own request's parameters.

Penalties follow OpenAI's formulas (``logit -= count * frequency + (count > 0) * presence`` over
generated tokens). Randomness is one uniform number per row, a pure function of the request's seed
and position, turned into a token by inverting the cumulative distribution; rows never influence
each other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as Rows
from dataclasses import dataclass

import torch
from torch import Tensor

from server.engine.errors import NonFiniteLogits
from server.engine.request import TokenLogprob
from server.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Sampled:
    """The token one row chose, with its log-probabilities if the request asked for them."""

    token_id: int
    logprob: TokenLogprob | None = None


def sample(logits: Tensor, rows: Rows[Sequence], eos_token_ids: frozenset[int]) -> list[Sampled]:
    """Choose one token per row of ``logits [len(rows), vocab]`` (float32; changed in place).

    Raises:
        NonFiniteLogits: a row holds NaN, which no rule could turn into a token.
    """
    best, greedy = logits.max(dim=-1)
    if torch.isnan(best).any():
        raise NonFiniteLogits("the forward pass produced NaN logits")
    logprobs = _logprobs(logits, rows)
    if any([_adjust(logits[i], seq, eos_token_ids) for i, seq in enumerate(rows)]):
        greedy = logits.argmax(dim=-1)
    tokens = greedy.tolist()
    drawn = [i for i, seq in enumerate(rows) if seq.request.sampling.temperature > 0]
    if drawn:
        picks = _draw(logits[drawn], [rows[i] for i in drawn])
        for i, token in zip(drawn, picks, strict=True):
            tokens[i] = token
    return [Sampled(token, _chosen(token, logprobs.get(i))) for i, token in enumerate(tokens)]


def _adjust(row: Tensor, seq: Sequence, eos_token_ids: frozenset[int]) -> bool:
    """Apply penalties and the minimum length to one row; True if anything changed."""
    sampling = seq.request.sampling
    changed = False
    if seq.num_generated < sampling.min_tokens:
        banned = eos_token_ids | sampling.stop_token_ids
        row[[t for t in banned if t < row.shape[0]]] = -torch.inf
        changed = True
    if (sampling.presence_penalty or sampling.frequency_penalty) and seq.num_generated:
        counts = Counter(seq.token_ids[seq.num_prompt :])
        ids = torch.tensor(list(counts), device=row.device)
        times = torch.tensor(list(counts.values()), dtype=row.dtype, device=row.device)
        row[ids] -= times * sampling.frequency_penalty + sampling.presence_penalty
        changed = True
    return changed


def _draw(logits: Tensor, rows: Rows[Sequence]) -> list[int]:
    """Sample ``logits [n, vocab]``; rows with a truncating rule are sorted, the others are not."""
    params = [seq.request.sampling for seq in rows]
    device = logits.device
    temperature = torch.tensor([p.temperature for p in params], device=device)
    uniform = torch.tensor([seq.uniform() for seq in rows], dtype=torch.float64, device=device)
    probs = torch.softmax(logits / temperature[:, None], dim=-1)
    order: Tensor | None = None
    if any(p.top_p < 1 or p.top_k > 0 or p.min_p > 0 for p in params):
        probs, order = probs.sort(dim=-1, descending=True, stable=True)
        probs = _truncate(
            probs,
            torch.tensor([p.top_p for p in params], device=device),
            torch.tensor([p.top_k or probs.shape[1] for p in params], device=device),
            torch.tensor([p.min_p for p in params], device=device),
        )
    cumulative = probs.double().cumsum(dim=-1)  # [n, vocab]
    # Scaled by the mass that is left, so nothing needs normalising; u < 1 keeps the pick inside.
    threshold = uniform * cumulative[:, -1]
    picks = torch.searchsorted(cumulative, threshold[:, None], right=True)
    if order is not None:
        picks = order.gather(1, picks)
    return [int(t) for t in picks[:, 0].tolist()]


def _truncate(probs: Tensor, top_p: Tensor, top_k: Tensor, min_p: Tensor) -> Tensor:
    """Zero what top-k, top-p (Holtzman et al., 2020) and min-p (Nguyen et al., 2024) exclude.

    ``probs [n, vocab]`` is sorted, best first; the best token always stays.
    """
    ranks = torch.arange(probs.shape[1], device=probs.device)
    mass_before = probs.cumsum(dim=-1) - probs
    keep = (ranks < top_k[:, None]) & (mass_before < top_p[:, None])
    keep &= probs >= min_p[:, None] * probs[:, :1]
    keep[:, 0] = True
    return probs * keep


def _logprobs(logits: Tensor, rows: Rows[Sequence]) -> dict[int, tuple[Tensor, TokenLogprob]]:
    """Per row that asked: all log-probabilities and the best ones."""
    found: dict[int, tuple[Tensor, TokenLogprob]] = {}
    for i, seq in enumerate(rows):
        num = seq.request.sampling.top_logprobs
        if num is None:
            continue
        row = torch.log_softmax(logits[i], dim=-1)
        values, ids = row.topk(num) if num else (row[:0], row[:0])
        top = tuple(zip((int(t) for t in ids.tolist()), values.tolist(), strict=True))
        found[i] = (row, TokenLogprob(-1, 0.0, top))
    return found


def _chosen(token_id: int, found: tuple[Tensor, TokenLogprob] | None) -> TokenLogprob | None:
    if found is None:
        return None
    row, best = found
    return TokenLogprob(token_id, float(row[token_id]), best.top)
