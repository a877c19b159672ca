"""Answers to results, by hand: who is compared with whom, and what noise says."""

from __future__ import annotations

from training.evaluate.answers import Answers
from training.evaluate.compare import compare
from training.evaluate.questions import Prepared, PreparedSuite

TASK = Prepared(
    "t",
    "classification",
    num_left_out=0,
    questions=["q"] * 4,
    references=["a", "b", "a", "b"],
    labels=("a", "b"),
    noisy=[1, 3],
    num_changed={"typos": 2, "case": 0},
)
SUITE = PreparedSuite("s", "h", 0, (TASK,), None, ())


def said(clean: str, typos: str, case: str) -> Answers:
    """One letter per answer; noise was asked of the second and the last question."""
    return Answers(texts={"t": {"clean": list(clean), "typos": list(typos), "case": list(case)}})


def test_noise_is_compared_with_the_same_questions_without_it() -> None:
    (task,) = compare(SUITE, {"adapter": said("xbxb", "xb", "bb")}).tasks
    noise = task.robustness["adapter"]
    assert task.figures["adapter"]["accuracy"] == 0.5  # of all four
    assert (noise["typos"].clean, noise["typos"].noisy, noise["typos"].score) == (1.0, 0.5, 0.5)
    assert noise["case"].score is None  # no question changed
    assert (noise["typos"].num_changed, noise["typos"].num_questions) == (2, 2)


def test_noise_says_nothing_where_the_clean_figure_is_0() -> None:
    (task,) = compare(SUITE, {"adapter": said("axax", "bb", "bb")}).tasks
    assert task.robustness["adapter"]["typos"].score is None


def test_the_adapter_is_compared_with_base_and_against_and_nobody_else() -> None:
    answers = {
        "base": said("xxxx", "xx", "xx"),
        "adapter": said("abab", "ab", "ab"),
        "against": said("abxx", "ab", "ab"),
    }
    (task,) = compare(SUITE, answers).tasks
    accuracy = {each.to: each.difference for each in task.differences if each.metric == "accuracy"}
    assert accuracy == {"base": 1.0, "against": 0.5}
    (alone,) = compare(SUITE, {"base": answers["base"]}).tasks
    assert alone.differences == ()
