"""Figures against the libraries they come from, and by hand."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from sacrebleu.metrics import BLEU

from training.evaluate import metrics
from training.evaluate.bootstrap import paired_differences

ENGLISH = [
    ("The parcel is on its way.", "Your parcel is on its way to you."),
    ("Please send the card back.", "Please send the old card back to us."),
    ("No.", "We are closed on Sunday."),
]
CHINESE = [
    ("您的订单明天就会送到。", "您的订单明天上午会送到。"),
    ("请联系客服退款", "请您联系客服办理退款"),
]


@pytest.mark.parametrize(("pairs", "tokenizer"), [(ENGLISH, "13a"), (CHINESE, "zh")])
def test_bleu_is_sacrebleus_over_the_whole_corpus(
    pairs: list[tuple[str, str]], tokenizer: str
) -> None:
    answers, references = (list(column) for column in zip(*pairs, strict=True))
    expected = BLEU(tokenize=tokenizer).corpus_score(answers, [references]).score / 100
    found = metrics.generation(answers, references).of_all["bleu4"]
    assert found == pytest.approx(expected)
    assert 0 < found < 1


def test_the_chinese_tokenizer_is_the_usual_one_on_english() -> None:
    """So one Chinese reference among English ones changes no English figure."""
    for answer, reference in ENGLISH:
        scores = [
            BLEU(tokenize=name).corpus_score([answer], [[reference]]) for name in ("13a", "zh")
        ]
        assert scores[0].counts == scores[1].counts


def test_rouge_sees_chinese_where_its_own_tokenizer_sees_nothing() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    answer, reference = CHINESE[0]
    assert RougeScorer(["rougeL"]).score(reference, answer)["rougeL"].fmeasure == 0
    assert metrics.rouge_l(answer, reference) > 0.5
    assert metrics.rouge_l(reference, reference) == 1
    assert metrics.rouge_l("退款", "明天送到") == 0
    english = RougeScorer(["rougeL"]).score(*reversed(ENGLISH[0]))["rougeL"].fmeasure
    assert metrics.rouge_l(*ENGLISH[0]) == pytest.approx(english)


def test_exact_match_forgives_case_width_and_marks_but_no_word() -> None:
    same = [("Card_Arrival.", "card arrival"), ("「退款」", "退款"), ("ＯＫ！", "ok")]
    for one, other in same[:1] + same[2:]:
        assert metrics.normalised(one) == metrics.normalised(other)
    assert metrics.normalised("card arrival now") != metrics.normalised("card arrival")
    figures = metrics.generation(["Yes!", "no"], ["yes", "yes"]).of_all
    assert figures["exact_match"] == 0.5


def test_classification_figures_by_hand() -> None:
    """a: 2 of 3 found, b called once wrongly; one answer is no label, c never occurs."""
    references = ["a", "a", "a", "b"]
    answers = ["A.", "a", "b", "perhaps a"]
    figures = metrics.classification(answers, references, ("a", "b", "c")).of_all
    f1_a = 2 * 1 * (2 / 3) / (1 + 2 / 3)  # precision 2/2, recall 2/3
    f1_b = 0.0  # called once, wrongly; never found
    assert figures["accuracy"] == 0.5
    assert figures["macro_f1"] == pytest.approx((f1_a + f1_b) / 2)
    precision, recall = 2 / 3, 2 / 4  # three answers were labels
    assert figures["micro_f1"] == pytest.approx(2 * precision * recall / (precision + recall))
    assert figures["outside_labels"] == 0.25


def test_perplexity_weighs_by_token() -> None:
    figures = metrics.perplexity([3.0, 1.0], [1, 3]).of_all
    assert figures == {"perplexity": pytest.approx(math.e), "loss": 1.0}


def measures(num_rows: int, better: float) -> tuple[metrics.Measure, metrics.Measure]:
    draw = random.Random(7)
    base = [draw.random() < 0.5 for _ in range(num_rows)]
    adapter = [right or draw.random() < better for right in base]
    references = ["x"] * num_rows
    return tuple(  # type: ignore[return-value]
        metrics.classification(["x" if right else "y" for right in said], references, ("x", "y"))
        for said in (adapter, base)
    )


def test_an_interval_holds_the_difference_and_tells_luck_from_gain() -> None:
    real = {each.metric: each for each in paired_differences(*measures(200, 0.5), "base", "s")}
    assert 0 < real["accuracy"].low < real["accuracy"].difference < real["accuracy"].high
    same = measures(200, 0.0)
    none = {each.metric: each for each in paired_differences(*same, "base", "s")}
    assert (none["accuracy"].low, none["accuracy"].high) == (0, 0)  # paired: equal row by row


def test_the_interval_of_a_mean_is_the_textbooks() -> None:
    """Of n paired differences of 0 and 1: about ± 1.96 sqrt(p (1 - p) / n)."""
    adapter, base = measures(400, 0.4)
    found = paired_differences(adapter, base, "base", "s")[0]
    share = found.difference
    half = 1.96 * math.sqrt(share * (1 - share) / 400)
    assert found.high - found.difference == pytest.approx(half, rel=0.12)
    assert found.difference - found.low == pytest.approx(half, rel=0.12)


def test_resamples_are_of_the_seed_alone() -> None:
    pair = measures(50, 0.3)
    assert paired_differences(*pair, "base", "a") == paired_differences(*pair, "base", "a")
    assert paired_differences(*pair, "base", "a") != paired_differences(*pair, "base", "b")


def test_resampled_bleu_is_the_bleu_of_the_resampled_rows() -> None:
    """The statistics of rows add up: what makes the intervals of corpus figures right."""
    measure = metrics.generation(*(list(c) for c in zip(*ENGLISH, strict=True)))
    drawn = [0, 0, 2, 1]
    answers, references = ([ENGLISH[row][side] for row in drawn] for side in (0, 1))
    weights = np.bincount(drawn, minlength=3).astype(float)
    assert measure.figures(weights @ measure.statistics) == pytest.approx(
        metrics.generation(answers, references).of_all
    )
