"""Drawn tokens against the exact distribution of each rule, by chi-square."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from server.engine.output import OutputText
from server.engine.request import GenerationRequest, SamplingParams
from server.engine.sampling import BLOCK, NUM_CANDIDATES, sample
from server.engine.sequence import Sequence

NUM_DRAWS = 4000
PROMPT = (1, 2)
SMALL, LARGE = 12, 3 * NUM_CANDIDATES + 7  # with and without room for a shortcut


def logits_of(vocab: int) -> Tensor:
    return torch.randn(vocab, generator=torch.Generator().manual_seed(3)) * 1.5


def rows(num: int, generated: tuple[int, ...] = (), **params: Any) -> list[Sequence]:
    made = []
    for seed in range(num):
        sampling = SamplingParams(max_tokens=10**6, **{"seed": seed, **params})
        seq = Sequence(GenerationRequest("r", PROMPT, sampling), OutputText(lambda ids: ""), 0.0)
        seq.token_ids += generated
        made.append(seq)
    return made


def draw(logits: Tensor, seqs: list[Sequence], width: int = 200) -> list[int]:
    """One token per sequence, ``width`` of them at a time."""
    tokens: list[int] = []
    for first in range(0, len(seqs), width):
        part = seqs[first : first + width]
        tokens += [s.token_id for s in sample(logits.repeat(len(part), 1), part, frozenset())]
    return tokens


def exact(logits: Tensor, generated: tuple[int, ...], **params: Any) -> Tensor:
    """The distribution by the published formulas, one token after the other, in float64."""
    p = SamplingParams(max_tokens=1, **params)
    adjusted = logits.double().clone()
    for token, bias in p.logit_bias:
        adjusted[token] += bias
    for token in {*PROMPT, *generated}:
        is_likely = adjusted[token] > 0
        adjusted[token] *= p.repetition_penalty ** (-1 if is_likely else 1)
    for token, count in Counter(generated).items():
        adjusted[token] -= count * p.frequency_penalty + p.presence_penalty
    probs = torch.softmax(adjusted / p.temperature, dim=-1)
    mass, kept = 0.0, []
    for rank, token in enumerate(probs.argsort(descending=True).tolist()):
        is_in = mass < p.top_p or p.top_p == 1
        is_in &= rank < (p.top_k or len(probs))
        is_in &= bool(probs[token] >= p.min_p * probs.max())
        if rank == 0 or is_in:
            kept.append(token)
        mass += float(probs[token])
    result = torch.zeros_like(probs)
    result[kept] = probs[kept]
    return result / result.sum()


def chi_square_excess(tokens: list[int], expected: Tensor) -> float:
    """How many standard deviations the statistic lies above its mean; rare tokens are pooled."""
    seen = torch.bincount(torch.tensor(tokens), minlength=len(expected)).double()
    assert not seen[expected == 0].any(), "a token that the rules exclude was drawn"
    wanted = expected * len(tokens)
    is_rare = wanted < 5
    seen = torch.cat((seen[~is_rare], seen[is_rare].sum()[None]))
    wanted = torch.cat((wanted[~is_rare], wanted[is_rare].sum()[None]))
    if wanted[-1] == 0:
        seen, wanted = seen[:-1], wanted[:-1]
    freedom = len(wanted) - 1
    if freedom == 0:
        return 0.0
    statistic = float(((seen - wanted) ** 2 / wanted).sum())
    return (statistic - freedom) / math.sqrt(2 * freedom)


RULES: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.6},
    {"temperature": 1.8},
    {"temperature": 1.0, "top_k": 5},
    {"temperature": 1.0, "top_p": 0.8},
    {"temperature": 1.5, "top_p": 0.999},
    {"temperature": 1.0, "min_p": 0.1},
    {"temperature": 0.9, "top_k": 9, "top_p": 0.9, "min_p": 0.02},
    {"temperature": 1.0, "presence_penalty": 1.5, "frequency_penalty": 0.4},
    {"temperature": 1.0, "presence_penalty": -1.0, "top_p": 0.9},
    {"temperature": 1.2, "top_k": NUM_CANDIDATES + 50},
    {"temperature": 1.0, "repetition_penalty": 1.7},
    {"temperature": 1.0, "repetition_penalty": 0.6, "presence_penalty": 0.5},
    {"temperature": 1.0, "logit_bias": ((3, 1.5), (0, -100.0), (5, -0.7)), "top_p": 0.9},
]


@pytest.mark.parametrize("vocab", [SMALL, LARGE])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_draws_follow_the_exact_distribution(rule: dict[str, Any], vocab: int) -> None:
    logits, generated = logits_of(vocab), (2, 5, 5, 7)
    tokens = draw(logits, rows(NUM_DRAWS, generated, **rule))
    assert chi_square_excess(tokens, exact(logits, generated, **rule)) < 5


def test_the_test_can_tell_a_wrong_distribution() -> None:
    logits = logits_of(SMALL)
    tokens = draw(logits, rows(NUM_DRAWS, temperature=1.0))
    assert chi_square_excess(tokens, exact(logits, (), temperature=1.1)) > 5


@pytest.mark.parametrize("vocab", [SMALL, LARGE])
def test_no_neighbour_changes_a_seeded_draw(vocab: int) -> None:
    """Rows that sort their tokens and rows that do not once shared one order."""
    logits = logits_of(vocab)
    mixed = [rows(1, seed=i, **rule)[0] for i, rule in enumerate(RULES * 20)]
    alone = [draw(logits, [seq])[0] for seq in mixed]
    assert draw(logits, mixed, width=len(mixed)) == alone
    assert draw(logits, mixed[::-1], width=7) == alone[::-1]


def test_successive_positions_of_one_seed_are_independent_draws() -> None:
    logits, (seq,) = logits_of(SMALL), rows(1, temperature=1.0)
    tokens = []
    for _ in range(NUM_DRAWS):
        tokens.append(draw(logits, [seq])[0])
        seq.token_ids.append(tokens[-1])
    expected = exact(logits, (), temperature=1.0)
    assert chi_square_excess(tokens, expected) < 5
    pairs = [a * SMALL + b for a, b in zip(tokens[::2], tokens[1::2], strict=True)]
    assert chi_square_excess(pairs, torch.outer(expected, expected).flatten()) < 5


@pytest.mark.parametrize("width", [1, 5, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK])
def test_extreme_draws_stay_inside(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.linspace(0.1, 0.0, width)  # best first, as the truncating rules sort them
    for draw_, expected in ((0.0, 0), (1 - 2.0**-48, width - 1)):
        monkeypatch.setattr(Sequence, "uniform", lambda seq, value=draw_: value)
        assert draw(logits, rows(1, temperature=1.0)) == [expected]
        assert draw(logits, rows(1, temperature=1.0, top_k=width)) == [expected]


def test_hardly_any_temperature_is_greedy_and_not_nan() -> None:
    logits = logits_of(SMALL) * 1000
    tokens = draw(logits, rows(20, temperature=1e-37))
    assert set(tokens) == {int(logits.argmax())}
