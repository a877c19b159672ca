"""Sampling against the formulas, row by row."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from server.engine.errors import NonFiniteLogits
from server.engine.output import OutputText
from server.engine.request import GenerationRequest, SamplingParams
from server.engine.sampling import sample
from server.engine.sequence import Sequence

VOCAB = 12
LOGITS = torch.linspace(-2.0, 2.0, VOCAB)


def sequence(generated: list[int] | None = None, **params: Any) -> Sequence:
    sampling = SamplingParams(max_tokens=1000, **params)
    request = GenerationRequest("r", (1, 2), sampling)
    seq = Sequence(request, OutputText(lambda ids: ""), 0.0)
    seq.token_ids += generated or []
    return seq


def draw(seq: Sequence, num: int) -> list[int]:
    """Tokens of ``num`` consecutive positions under the same logits."""
    tokens = []
    for _ in range(num):
        token = sample(LOGITS[None].clone(), [seq], frozenset())[0].token_id
        tokens.append(token)
        seq.token_ids.append(token)
    return tokens


def frequencies(tokens: list[int]) -> torch.Tensor:
    return torch.bincount(torch.tensor(tokens), minlength=VOCAB) / len(tokens)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_plain_sampling_follows_the_softmax(temperature: float) -> None:
    seen = frequencies(draw(sequence(temperature=temperature, seed=1), 4000))
    assert (seen - torch.softmax(LOGITS / temperature, -1)).abs().max() < 0.03


@pytest.mark.parametrize(
    ("params", "allowed"),
    [
        ({"top_k": 3}, {9, 10, 11}),
        ({"top_k": 1}, {11}),
        ({"min_p": 0.5}, {10, 11}),  # one step of logits is a factor of e^(4/11) = 1.44
        ({"top_p": 1e-9}, {11}),
        ({"top_p": 0.5}, {10, 11}),  # the best two hold 0.31 + 0.21 of the mass
    ],
)
def test_truncation_keeps_exactly_what_its_rule_says(
    params: dict[str, Any], allowed: set[int]
) -> None:
    assert set(draw(sequence(temperature=1.0, seed=2, **params), 400)) == allowed


def test_a_seed_gives_the_same_tokens_again_in_any_batch() -> None:
    alone = draw(sequence(temperature=1.0, seed=7), 50)
    seq, others = sequence(temperature=1.0, seed=7), [sequence(temperature=1.5) for _ in range(3)]
    mixed = []
    for _ in range(50):
        rows = [others[0], seq, *others[1:]]
        token = sample(LOGITS.repeat(4, 1), rows, frozenset())[1].token_id
        seq.token_ids.append(token)
        mixed.append(token)
    assert mixed == alone
    assert draw(sequence(temperature=1.0, seed=8), 50) != alone


def test_penalties_follow_the_published_formula() -> None:
    seq = sequence([11, 11, 10], temperature=0, presence_penalty=0.4, frequency_penalty=0.2)
    # 11: 2.0 - 2 * 0.2 - 0.4 = 1.2 (approximately); 10: 1.64 - 0.2 - 0.4 = 1.04; 9: 1.27 wins
    assert sample(LOGITS[None].clone(), [seq], frozenset())[0].token_id == 9


def test_prompt_tokens_are_not_penalised() -> None:
    seq = sequence([], temperature=0, presence_penalty=2.0)
    seq.request = GenerationRequest("r", (11,), seq.request.sampling)
    assert sample(LOGITS[None].clone(), [seq], frozenset())[0].token_id == 11


def test_end_tokens_are_impossible_before_the_minimum_length() -> None:
    seq = sequence(temperature=0, min_tokens=2, stop_token_ids=frozenset({10}))
    tokens = [sample(LOGITS[None].clone(), [seq], frozenset({11}))[0].token_id]
    assert tokens == [9]
    seq.token_ids += [9, 9]
    assert sample(LOGITS[None].clone(), [seq], frozenset({11}))[0].token_id == 11


def test_logprobs_are_the_models_own_whatever_rules_apply() -> None:
    seq = sequence([11], temperature=0.1, top_k=1, presence_penalty=2.0, top_logprobs=2)
    sampled = sample(LOGITS[None].clone(), [seq], frozenset())[0]
    reference = torch.log_softmax(LOGITS, -1)
    assert sampled.logprob is not None
    assert sampled.logprob.logprob == pytest.approx(float(reference[sampled.token_id]))
    assert [t for t, _ in sampled.logprob.top] == [11, 10]
    assert [p for _, p in sampled.logprob.top] == pytest.approx(reference[[11, 10]].tolist())


def test_nan_logits_are_an_error_not_a_token() -> None:
    logits = LOGITS[None].clone()
    logits[0, 3] = torch.nan
    with pytest.raises(NonFiniteLogits):
        sample(logits, [sequence(temperature=0)], frozenset())
