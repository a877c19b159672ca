"""Figures of a task from statistics per row, so that resampled rows give resampled figures.

Every measure is a matrix [num_rows, num_statistics] and a function of the matrix's column sums:
BLEU, macro F1 and perplexity are corpus figures, no means of rows.

BLEU-4 and ROUGE-L lie in 0…1. BLEU is sacrebleu's, with its Chinese tokenizer where the references
hold Chinese (it treats everything else as 13a does). ROUGE-L's own tokenizer drops Chinese, so
jieba cuts it.
"""

from __future__ import annotations

import logging
import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from artifacts.results import Figures

Matrix = NDArray[np.float64]

CHINESE = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
_EDGES = " \t\r\n\"'`“”‘’.,;:!?。，；：！？、()[]{}<>《》【】"
_GAPS = re.compile(r"[\s_\-]+")
_NGRAMS = 4


@dataclass(frozen=True, slots=True)
class Measure:
    """Rows as statistics; ``figures`` makes named figures of their sums."""

    statistics: Matrix  # [num_rows, num_statistics]
    figures: Callable[[Matrix], Figures]
    main: str  # the figure that stands for the task

    @property
    def of_all(self) -> Figures:
        return self.figures(self.statistics.sum(axis=0))


def perplexity(losses: Sequence[float], num_tokens: Sequence[int]) -> Measure:
    """``losses`` are summed negative log-likelihoods per row, in nats."""
    return Measure(np.array([losses, num_tokens], float).T, _perplexity, "perplexity")


def _perplexity(sums: Matrix) -> Figures:
    loss = float(sums[0] / sums[1])
    return {"perplexity": math.exp(min(loss, 700.0)), "loss": loss}


def generation(answers: Sequence[str], references: Sequence[str]) -> Measure:
    """bleu4, rouge_l and exact_match of one reference each."""
    from sacrebleu.metrics import BLEU

    bleu = BLEU(tokenize=bleu_tokenizer(references))
    rows = []
    for answer, reference in zip(answers, references, strict=True):
        score: Any = bleu.corpus_score([answer], [[reference]])
        is_exact = normalised(answer) == normalised(reference)
        counts = (score.sys_len, score.ref_len, *score.counts, *score.totals)
        rows.append((*counts, rouge_l(answer, reference), is_exact, 1))
    return Measure(np.array(rows, float), _generation, "bleu4")


def _generation(sums: Matrix) -> Figures:
    from sacrebleu.metrics import BLEU

    counts = [int(n) for n in sums[: 2 + 2 * _NGRAMS]]
    bleu = BLEU.compute_bleu(
        counts[2 : 2 + _NGRAMS], counts[2 + _NGRAMS :], counts[0], counts[1], smooth_method="exp"
    )
    rouge, exact, num_rows = sums[2 + 2 * _NGRAMS :]
    return {
        "bleu4": float(bleu.score) / 100,
        "rouge_l": float(rouge / num_rows),
        "exact_match": float(exact / num_rows),
    }


def bleu_tokenizer(references: Sequence[str]) -> str:
    return "zh" if any(CHINESE.search(text) for text in references) else "13a"


def rouge_l(answer: str, reference: str) -> float:
    """The F-measure of the longest common subsequence of words."""
    is_chinese = CHINESE.search(answer + reference) is not None
    return float(_rouge(is_chinese).score(reference, answer)["rougeL"].fmeasure)


@cache
def _rouge(is_chinese: bool) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=_Words() if is_chinese else None)


class _Words:
    """rouge-score's tokenizer for text with Chinese in it."""

    def __init__(self) -> None:
        import jieba

        jieba.setLogLevel(logging.WARNING)  # it greets on stderr
        self._cut = jieba.lcut

    def tokenize(self, text: str) -> list[str]:
        words = (word.strip().lower() for word in self._cut(text))
        return [word for word in words if any(char.isalnum() for char in word)]


def classification(
    answers: Sequence[str], references: Sequence[str], labels: Sequence[str]
) -> Measure:
    """accuracy, macro and micro F1, and the share of answers that are none of ``labels``.

    An answer that is no label counts against recall alone: nobody was wrongly called anything.
    Macro F1 is the mean over the labels that occur in references or answers.
    """
    places = {normalised(label): place for place, label in enumerate(labels)}
    num_labels = len(labels)
    rows = np.zeros((len(answers), 3 * num_labels + 3))
    for row, answer, reference in zip(rows, answers, references, strict=True):
        wanted, given = places[normalised(reference)], places.get(normalised(answer))
        row[num_labels + wanted] = 1
        if given is not None:
            row[2 * num_labels + given] = 1
            row[given] = given == wanted
        row[-3:] = given == wanted, given is None, 1
    return Measure(rows, lambda sums: _classification(sums, num_labels), "accuracy")


def _classification(sums: Matrix, num_labels: int) -> Figures:
    right, actual, given = sums[:-3].reshape(3, num_labels)
    correct, outside, num_rows = sums[-3:]
    occurring = actual + given > 0
    f1 = 2 * right[occurring] / (actual + given)[occurring]
    return {
        "accuracy": float(correct / num_rows),
        "macro_f1": float(f1.mean()),
        "micro_f1": float(2 * correct / (2 * num_rows - outside)),
        "outside_labels": float(outside / num_rows),
    }


def normalised(text: str) -> str:
    """Text as answers are compared: NFKC, case folded, no quotes or marks around it, one space for
    any run of spaces, hyphens and underscores."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return _GAPS.sub(" ", folded).strip(_EDGES)
