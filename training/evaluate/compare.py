"""Answers of several subjects to results: figures, intervals, noise. No torch, no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from artifacts.results import Difference, Noise, Results, TaskResult
from training.evaluate import metrics
from training.evaluate.answers import Answers
from training.evaluate.bootstrap import paired_differences
from training.evaluate.metrics import Measure
from training.evaluate.questions import CLEAN, Prepared, PreparedSuite

ByGroup = Mapping[str, Answers]


def compare(
    suite: PreparedSuite, answers: ByGroup, subjects: Mapping[str, dict[str, Any]] | None = None
) -> Results:
    """``answers`` and ``subjects`` are keyed by base, adapter, against; equal for equal answers."""
    return Results(
        suite=suite.name,
        suite_hash=suite.hash,
        seed=suite.seed,
        subjects=dict(subjects or {}),
        tasks=tuple(_result(task, answers, suite.seed) for task in suite.tasks),
        general=None if suite.general is None else _result(suite.general, answers, suite.seed),
    )


def _result(task: Prepared, answers: ByGroup, seed: int) -> TaskResult:
    measures = {who: _measure(task, said, CLEAN) for who, said in answers.items()}
    differences: tuple[Difference, ...] = ()
    others: tuple[Literal["base", "against"], ...] = ("base", "against")
    for other in others:
        if "adapter" in measures and other in measures:
            pair = measures["adapter"], measures[other]
            differences += paired_differences(*pair, other, f"{seed}:{task.name}:{other}")
    return TaskResult(
        name=task.name,
        kind=task.kind,
        main=next(iter(measures.values())).main,
        num_rows=task.num_rows,
        num_left_out=task.num_left_out,
        figures={who: measure.of_all for who, measure in measures.items()},
        differences=differences,
        robustness={who: noise for who, said in answers.items() if (noise := _noise(task, said))},
    )


def _noise(task: Prepared, said: Answers) -> dict[str, Noise]:
    found: dict[str, Noise] = {}
    for kind, num_changed in task.num_changed.items():
        noisy = _measure(task, said, kind, task.noisy)
        main, num_questions = noisy.main, len(noisy.statistics)
        clean = _measure(task, said, CLEAN, task.noisy).of_all[main]
        figure = noisy.of_all[main]
        says_something = clean > 0 and num_changed > 0
        found[kind] = Noise(
            clean=clean,
            noisy=figure,
            score=figure / clean if says_something else None,
            num_changed=num_changed,
            num_questions=num_questions,
        )
    return found


def _measure(
    task: Prepared, said: Answers, variant: str, places: Sequence[int] | None = None
) -> Measure:
    """Of the questions at ``places``, None: of all. Noise was asked at its places alone."""
    if task.kind == "perplexity":
        counts = [example.num_targets for example in task.examples]
        return metrics.perplexity(said.losses[task.name], counts)
    texts, references = said.texts[task.name][variant], task.references
    if places is not None:
        references = [references[place] for place in places]
        texts = [texts[place] for place in places] if variant == CLEAN else texts
    if task.kind == "classification":
        return metrics.classification(texts, references, task.labels)
    return metrics.generation(texts, references)
