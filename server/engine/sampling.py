"""From logits to tokens, each row by its own request's parameters.

Penalties follow OpenAI's formulas (``logit -= count * frequency + (count > 0) * presence`` over
generated tokens), the repetition penalty Keskar et al., 2019 (CTRL: positive logits of tokens seen
are divided by it, negative ones multiplied). A grammar leaves the tokens that it allows as they
are. Randomness is one uniform number per row, a pure function of the request's seed
and position, turned into a token by inverting the cumulative distribution; rows never influence
each other, not even in the order in which their tokens are laid out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from collections.abc import Sequence as Rows
from dataclasses import replace
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from server.engine.errors import NonFiniteLogits
from server.engine.request import Result, Sampled, SamplingParams, Scored, TokenLogprob
from server.engine.scheduler import Chunk
from server.engine.sequence import Sequence

NUM_CANDIDATES = 512  # best tokens looked at first; sorting a whole vocabulary costs 20 times more
BLOCK = 256  # probabilities summed at once
MIN_TEMPERATURE = 1e-6
MAX_UNIFORM = 1.0 - 2.0**-48


def sample(logits: Tensor, rows: Rows[Sequence], eos_token_ids: frozenset[int]) -> list[Sampled]:
    """Choose one token per row of ``logits [len(rows), vocab]`` (float32; changed in place).

    Raises:
        NonFiniteLogits: a row's best is NaN or infinite, which no rule could turn into a token.
    """
    logprobs = _logprobs(logits, rows)
    _constrain(logits, rows)
    best, greedy = logits.max(dim=-1)
    if not torch.isfinite(best).all():
        raise NonFiniteLogits("the forward pass produced logits that are not finite")
    if any([_adjust(logits[i], seq, eos_token_ids) for i, seq in enumerate(rows)]):
        greedy = logits.argmax(dim=-1)
    tokens = greedy.tolist()
    drawn = [i for i, seq in enumerate(rows) if seq.request.sampling.temperature > 0]
    if drawn:
        chosen = logits if len(drawn) == len(rows) else logits[drawn]
        picks = _draw(chosen, [rows[i] for i in drawn])
        for i, token in zip(drawn, picks, strict=True):
            tokens[i] = token
    return [Sampled(token, _chosen(token, logprobs.get(i))) for i, token in enumerate(tokens)]


def _adjust(row: Tensor, seq: Sequence, eos_token_ids: frozenset[int]) -> bool:
    """Apply all else that forbids or favours tokens to one row; True if anything changed."""
    if seq.must_end_thinking:
        thinking = seq.request.sampling.thinking
        assert thinking is not None
        row.fill_(-torch.inf)
        row[thinking.end_id] = 0.0
        return True
    changed = _penalise(row, seq)
    return _forbid_end(row, seq, eos_token_ids) or changed


def _penalise(row: Tensor, seq: Sequence) -> bool:
    sampling = seq.request.sampling
    changed = False
    if sampling.logit_bias:
        biased, biases = zip(*sampling.logit_bias, strict=True)
        row[list(biased)] += torch.tensor(biases, device=row.device)
        changed = True
    if sampling.repetition_penalty != 1:
        seen = torch.tensor(seq.token_ids, device=row.device)
        values = row[seen]
        penalty = sampling.repetition_penalty
        row[seen] = torch.where(values > 0, values / penalty, values * penalty)
        changed = True
    if (sampling.presence_penalty or sampling.frequency_penalty) and seq.num_generated:
        counts = Counter(seq.token_ids[seq.num_prompt :])
        ids = torch.tensor(list(counts), device=row.device)
        times = torch.tensor(list(counts.values()), dtype=row.dtype, device=row.device)
        row[ids] -= times * sampling.frequency_penalty + sampling.presence_penalty
        changed = True
    return changed


def _constrain(logits: Tensor, rows: Rows[Sequence]) -> None:
    """Forbid what grammars do not allow, in all rows at once; thoughts may begin before they do."""
    held = [i for i, seq in enumerate(rows) if seq.grammar is not None and not seq.is_thinking]
    if not held:
        return
    masks = b"".join([rows[i].grammar.mask for i in held])  # type: ignore[union-attr]
    packed = ~np.frombuffer(masks, np.uint8).reshape(len(held), -1)
    bits = np.unpackbits(packed, axis=1, bitorder="little")[:, : logits.shape[1]]
    for place, i in enumerate(held):
        thinking = rows[i].request.sampling.thinking
        if thinking is not None and not thinking.is_open and rows[i].num_generated == 0:
            bits[place, thinking.start_id] = 0
    forbidden = torch.from_numpy(bits.view(np.bool_)).to(logits.device)
    width = forbidden.shape[1]
    if width < logits.shape[1]:
        logits[held, width:] = -torch.inf
    if len(held) == len(rows):
        logits[:, :width].masked_fill_(forbidden, -torch.inf)
    else:
        for place, i in enumerate(held):
            logits[i, :width].masked_fill_(forbidden[place], -torch.inf)


def _forbid_end(row: Tensor, seq: Sequence, eos_token_ids: frozenset[int]) -> bool:
    """Keep the answer from ending before its minimum length, unless nothing else may follow, and
    inside thoughts behind which it has to have a form."""
    sampling = seq.request.sampling
    is_formless = seq.grammar is not None and seq.is_thinking
    if seq.num_generated >= sampling.min_tokens and not is_formless:
        return False
    banned = [t for t in eos_token_ids | sampling.stop_token_ids if t < row.shape[0]]
    kept = row[banned]
    row[banned] = -torch.inf
    if seq.grammar is not None and not torch.isfinite(row.max()):
        row[banned] = kept
    return True


def _draw(logits: Tensor, rows: Rows[Sequence]) -> list[int]:
    """Sample ``logits [n, vocab]``, each row by its own rules; the logits are used up."""
    device = logits.device
    # Below the least temperature all but the best are impossible anyway; it keeps inf out.
    temperatures = [max(s.request.sampling.temperature, MIN_TEMPERATURE) for s in rows]
    probs = torch.softmax(logits.div_(torch.tensor(temperatures, device=device)[:, None]), dim=-1)
    uniform = torch.tensor([seq.uniform() for seq in rows], dtype=torch.float64, device=device)
    cut = [i for i, seq in enumerate(rows) if _is_truncated(seq.request.sampling)]
    if not cut:
        return _invert(probs, uniform)
    tokens = [0] * len(rows)
    picks = _draw_truncated(probs[cut], uniform[cut], [rows[i] for i in cut])
    for i, token in zip(cut, picks, strict=True):
        tokens[i] = token
    if whole := [i for i in range(len(rows)) if not _is_truncated(rows[i].request.sampling)]:
        for i, token in zip(whole, _invert(probs[whole], uniform[whole]), strict=True):
            tokens[i] = token
    return tokens


def _is_truncated(params: SamplingParams) -> bool:
    return params.top_p < 1 or params.top_k > 0 or params.min_p > 0


def _draw_truncated(probs: Tensor, uniform: Tensor, rows: Rows[Sequence]) -> list[int]:
    """Sample ``probs [n, vocab]`` among what top-k, top-p and min-p leave of them."""
    best, order = probs.topk(min(NUM_CANDIDATES, probs.shape[1]), dim=-1)
    kept = _truncate(best, rows)
    # A row whose last candidate stays may go on behind it: that one is sorted as a whole.
    is_open = (kept[:, -1] > 0).tolist()
    picks = _invert(kept, uniform)
    tokens = order.gather(1, torch.tensor(picks, device=order.device)[:, None])[:, 0].tolist()
    for i, seq in enumerate(rows):
        if is_open[i] and best.shape[1] < probs.shape[1]:
            sorted_, whole_order = probs[i : i + 1].sort(dim=-1, descending=True, stable=True)
            (pick,) = _invert(_truncate(sorted_, [seq]), uniform[i : i + 1])
            tokens[i] = int(whole_order[0, pick])
    return tokens


def _truncate(probs: Tensor, rows: Rows[Sequence]) -> Tensor:
    """Zero what top-k, top-p (Holtzman et al., 2020) and min-p (Nguyen et al., 2024) exclude.

    ``probs [n, any]`` is sorted, best first; the best token always stays.
    """
    params = [seq.request.sampling for seq in rows]
    device, width = probs.device, probs.shape[1]
    top_k = torch.tensor([p.top_k or width for p in params], device=device)
    # A mass of 1 excludes nothing, whatever rounding makes of the sum.
    top_p = torch.tensor(
        [p.top_p if p.top_p < 1 else torch.inf for p in params], dtype=torch.float64, device=device
    )
    min_p = torch.tensor([p.min_p for p in params], device=device)
    ranks = torch.arange(width, device=device)
    exact = probs.double()
    mass_before = exact.cumsum(dim=-1) - exact
    keep = (ranks < top_k[:, None]) & (mass_before < top_p[:, None])
    keep &= probs >= min_p[:, None] * probs[:, :1]
    keep[:, 0] = True
    return probs * keep


def _invert(probs: Tensor, uniform: Tensor) -> list[int]:
    """The index in ``probs [n, any]`` at which their running sum passes ``uniform [n]``.

    Scaled by the sum, so nothing needs normalising. First the block is found, then the place in it:
    a running sum over a whole vocabulary takes longer than its softmax.
    """
    width = probs.shape[1]
    # [n, blocks]; the last block may be shorter, or empty
    tail = probs[:, width - width % BLOCK :].sum(-1, keepdim=True)
    sums = probs[:, :0] if width < BLOCK else probs.unfold(1, BLOCK, BLOCK).sum(-1)
    sums = torch.cat((sums, tail), dim=1).double()
    upto = sums.cumsum(-1)
    threshold = (uniform * upto[:, -1])[:, None]
    block = torch.searchsorted(upto, threshold, right=True)  # [n, 1], its sum is above 0
    size = sums.gather(1, block)
    rest = (threshold - (upto.gather(1, block) - size)) / size

    places = block * BLOCK + torch.arange(BLOCK, device=probs.device)  # [n, BLOCK]
    inside = probs.gather(1, places.clamp(max=width - 1)).double() * (places < width)
    inside = inside.cumsum(-1)
    # Rounding must not carry the draw over the block's end, where nothing has probability.
    rest = rest.clamp(0.0, MAX_UNIFORM) * inside[:, -1:]
    picks = places.gather(1, torch.searchsorted(inside, rest, right=True))
    return [int(i) for i in picks[:, 0].tolist()]


def score(logits: Tensor, token_ids: list[int], num_top: int) -> list[TokenLogprob]:
    """How likely ``token_ids[i]`` is under ``logits[i]``, and the ``num_top`` best ones."""
    logprobs = torch.log_softmax(logits, dim=-1)
    values, ids = logprobs.topk(num_top, dim=-1)
    own = logprobs.gather(1, torch.tensor(token_ids, device=logits.device)[:, None])[:, 0].tolist()
    rows = zip(token_ids, own, ids.tolist(), values.tolist(), strict=True)
    return [
        TokenLogprob(token, logprob, tuple(zip(best, best_values, strict=True)))
        for token, logprob, best, best_values in rows
    ]


def results_of(logits: Tensor, chunks: Rows[Chunk], eos_token_ids: frozenset[int]) -> list[Result]:
    """One step's result for each chunk.

    ``logits`` has a row for the newest token of each chunk that ends its prompt or goes on behind
    it, in the chunks' order, then those of all positions that are scored.
    """
    last = [chunk.seq for chunk in chunks if chunk.is_last]
    scored = iter(_scores(logits[len(last) :], chunks))  # first: sampling uses its logits up
    prompts = [tuple(islice(scored, len(chunk.scored))) for chunk in chunks]
    tokens = iter(sample(logits[: len(last)], last, eos_token_ids) if last else ())
    results: list[Result] = []
    for chunk, prompt in zip(chunks, prompts, strict=True):
        if chunk.is_last:
            sampled = next(tokens)
            results.append(replace(sampled, prompt=prompt) if prompt else sampled)
        else:
            results.append(Scored(prompt) if prompt else None)
    return results


def scored_rows(chunks: Rows[Chunk], starts: Rows[int]) -> list[int]:
    """Rows of the packed batch whose logits `results_of` takes after the sampled ones.

    ``starts`` are the rows of the chunks' first tokens.
    """
    return [
        start + position - chunk.start
        for chunk, start in zip(chunks, starts, strict=True)
        for position in chunk.scored
    ]


def _scores(logits: Tensor, chunks: Rows[Chunk]) -> Iterator[TokenLogprob]:
    at = 0
    for chunk in chunks:
        num_top = chunk.seq.request.sampling.prompt_logprobs
        if num_top is None or not chunk.scored:
            continue
        following = [chunk.seq.token_ids[p + 1] for p in chunk.scored]
        yield from score(logits[at : at + len(following)], following, num_top)
        at += len(following)


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
