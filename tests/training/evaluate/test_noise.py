"""Perturbations: seeded, in the right measure, and what they are called."""

from __future__ import annotations

import pytest

from training.evaluate import homophones
from training.evaluate.homophones import LOOKS_LIKE, SOUNDS_LIKE
from training.evaluate.noise import _NEIGHBOURS, perturb
from training.evaluate.suite import PERTURBATIONS, Perturbation

ENGLISH = "Where is my new card? I ordered it last week, and it has not arrived yet."
CHINESE = "我的订单什么时候到？我上周买的茶叶还没有收到，请问是不是已经发货了。"


@pytest.mark.parametrize("kind", PERTURBATIONS)
@pytest.mark.parametrize("text", [ENGLISH, CHINESE])
def test_noise_is_of_the_seed_alone_and_leaves_most_of_a_text(
    kind: Perturbation, text: str
) -> None:
    noisy = perturb(text, kind, 0.1, "seed")
    assert noisy == perturb(text, kind, 0.1, "seed")
    if kind == "case" and text == CHINESE:
        assert noisy == text  # Chinese has no capitals
        return
    assert noisy != text
    assert len({perturb(text, kind, 0.3, str(seed)) for seed in range(20)}) > 1
    kept = sum(a == b for a, b in zip(noisy.lower(), text.lower(), strict=False))
    assert kind == "typos" or kept > 0.6 * len(text) or kind == "homophones"


@pytest.mark.parametrize("text", ["", "   ", "???", "好", "12345", "😀"])
@pytest.mark.parametrize("kind", PERTURBATIONS)
def test_nothing_breaks_where_little_can_change(kind: Perturbation, text: str) -> None:
    assert isinstance(perturb(text, kind, 1.0, "s"), str)


def test_the_rate_is_the_share_of_places() -> None:
    def num_changed(rate: float) -> int:
        noisy = perturb(CHINESE, "homophones", rate, "s")
        return sum(a != b for a, b in zip(noisy, CHINESE, strict=True))

    places = sum(character in SOUNDS_LIKE for character in CHINESE)
    assert places > 12
    assert num_changed(0) == 0
    assert num_changed(0.01) == 1  # at least one, so that the question counts as noisy
    assert num_changed(0.5) == round(places / 2)
    assert num_changed(1) == places


def test_a_homophone_sounds_alike_and_is_another_character() -> None:
    noisy = perturb(CHINESE, "homophones", 1.0, "s")
    for before, after in zip(CHINESE, noisy, strict=True):
        assert after == before or after in SOUNDS_LIKE[before]
    assert perturb("Where are you?", "homophones", 1.0, "s").split()[0] in ("Wear", "Were")


@pytest.mark.parametrize("table", [homophones._SAME_SOUND, homophones._SAME_SHAPE])
def test_a_character_stands_in_one_group(table: str) -> None:
    """Two groups would join sounds that are not the same."""
    groups = table.split()
    characters = [character for group in groups for character in group]
    assert len(characters) == len(set(characters))
    assert all(len(group) > 1 for group in groups)
    assert all("\u4e00" <= character <= "\u9fff" for character in characters)


def test_a_typo_is_a_key_nearby_or_a_letter_lost_doubled_or_swapped() -> None:
    assert set(_NEIGHBOURS["g"]) == set("fhtyvb")
    for seed in range(200):
        noisy = perturb("delivery", "typos", 1.0, str(seed))
        assert noisy[0] == "d"
        if len(noisy) == len("delivery"):
            changed = [(a, b) for a, b in zip("delivery", noisy, strict=True) if a != b]
            is_swap = len(changed) == 2 and changed[0] == changed[1][::-1]
            assert is_swap or (len(changed) == 1 and changed[0][1] in _NEIGHBOURS[changed[0][0]])
        else:
            assert abs(len(noisy) - len("delivery")) == 1
    assert all(perturb("未", "typos", 1.0, str(s)) in LOOKS_LIKE["未"] for s in range(5))


def test_punctuation_changes_marks_alone() -> None:
    for text in (ENGLISH, CHINESE):
        for seed in range(30):
            noisy = perturb(text, "punctuation", 0.5, str(seed))
            letters = [[c for c in each if c.isalnum()] for each in (text, noisy)]
            assert letters[0] == letters[1]
            assert noisy != text
