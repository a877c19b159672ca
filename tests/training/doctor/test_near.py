"""Near duplicates against a comparison of all pairs, and what must not be taken for one."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from itertools import combinations

import pytest

from training.doctor import near
from training.doctor.near import RowText, find_near_duplicates, jaccard, shingles

LATIN = [f"word{i}" for i in range(3000)]
CHINESE = [chr(code) for code in range(0x4E00, 0x4E00 + 3000)]


def text(draw: random.Random, words: list[str], count: int) -> str:
    joint = "" if words is CHINESE else " "
    return joint.join(draw.choices(words, k=count))


def changed(draw: random.Random, words: list[str], line: str, count: int) -> str:
    parts = list(line) if words is CHINESE else line.split()
    for place in draw.sample(range(len(parts)), count):
        parts[place] = draw.choice(words)
    return ("" if words is CHINESE else " ").join(parts)


@pytest.mark.parametrize("words", [LATIN, CHINESE], ids=["latin", "chinese"])
@pytest.mark.parametrize("threshold", [0.6, 0.8, 0.9])
def test_what_stays_is_unlike_and_what_goes_is_like_one_that_stays(
    words: list[str], threshold: float
) -> None:
    draw = random.Random(0)
    lines: list[str] = []
    for _ in range(60):
        line = text(draw, words, 80)
        lines += [line, *(changed(draw, words, line, count) for count in (1, 1, 2, 4))]
    draw.shuffle(lines)
    likeness = find_near_duplicates([RowText("", line) for line in lines], threshold)
    grams = [shingles(line) for line in lines]
    stays = [row for row, original in enumerate(likeness.original) if original is None]
    assert all(jaccard(grams[a], grams[b]) < threshold for a, b in combinations(stays, 2))
    for row, original in enumerate(likeness.original):
        if original is not None:
            assert original in stays
            assert original < row
            assert jaccard(grams[row], grams[original]) >= threshold
    assert 0 < likeness.num_duplicates < len(lines)
    for a, b in combinations(range(len(lines)), 2):
        if jaccard(grams[a], grams[b]) >= threshold:
            assert likeness.cluster[a] == likeness.cluster[b]


def test_the_similarity_is_that_of_word_and_character_5_grams() -> None:
    one, other = "a b c d e f g h", "a b c d e f g X"  # 4 grams each, 3 shared
    assert jaccard(shingles(one), shingles(other)) == pytest.approx(3 / 5)
    assert jaccard(shingles("甲乙丙丁戊己"), shingles("甲乙丙丁戊庚")) == pytest.approx(1 / 3)
    assert jaccard(shingles("Hello, world!"), shingles("hello WORLD")) == 1
    assert jaccard(shingles("你好。"), shingles("你好！")) == 1
    assert jaccard(shingles("!!"), shingles("??")) == 0


def row(prompt: str, reply: str) -> RowText:
    return RowText(prompt, reply)


PASSAGE = " ".join(LATIN[:200])


def num_alike(rows: list[RowText], threshold: float = 0.9) -> int:
    return find_near_duplicates(rows, threshold).num_duplicates


def test_other_questions_about_one_passage_are_no_duplicates() -> None:
    rows = [row(f"{PASSAGE} Who came?", "Ada Lovelace"), row(f"{PASSAGE} Who left?", "Alan Turing")]
    assert num_alike(rows) == 0
    assert num_alike([rows[0], row(f"{PASSAGE} Who came??", "ada lovelace.")]) == 1


def test_what_a_template_says_in_every_row_does_not_count() -> None:
    draw = random.Random(0)
    rows = [row(f"{PASSAGE}: {text(draw, LATIN, 8)}", "positive") for _ in range(200)]
    assert num_alike(rows) == 0
    assert num_alike([*rows, row(rows[7].prompt + "!", "Positive")]) == 1
    assert num_alike([*rows, row(PASSAGE, ""), row(PASSAGE + "!", "")]) == 1  # nothing but it


def test_numbers_in_a_pattern_make_other_rows() -> None:
    """Sums, dates, ids: nothing else tells such rows apart."""
    rows = [row(f"What is {i} plus {i + 1}?", f"It is {2 * i + 1}.") for i in range(300)]
    assert num_alike(rows) == 0


def test_fixed_rows_stay_and_take_the_others_with_them() -> None:
    """Those of a test set: also where they are like each other."""
    draw = random.Random(0)
    held_out = [row("Say it", text(draw, LATIN, 100)) for _ in range(5)]
    held_out.append(row("Say it!", held_out[0].reply))
    mine = [row("Say it", text(draw, LATIN, 100)), row("say it", held_out[3].reply.upper())]
    likeness = find_near_duplicates([*held_out, *mine], 0.9, num_fixed=6)
    assert likeness.original == [None] * 7 + [3]


def same(_: random.Random) -> str:
    return PASSAGE


def one_word_changed(draw: random.Random) -> str:
    return changed(draw, LATIN, PASSAGE, 1)


def short_and_new(draw: random.Random) -> str:
    return text(draw, LATIN, 25)


@pytest.mark.parametrize("make", [same, one_word_changed, short_and_new])
def test_the_work_grows_with_the_rows_and_not_with_their_pairs(
    make: Callable[[random.Random], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row is compared with few others, even where all are alike."""
    draw = random.Random(0)
    rows = [row("", make(draw)) for _ in range(400)]
    compared = 0

    def counting(one: near.Shingles, other: near.Shingles) -> float:
        nonlocal compared
        compared += 1
        return jaccard(one, other)

    monkeypatch.setattr(near, "jaccard", counting)
    monkeypatch.setattr(near, "_MIN_ROWS_OF_TEMPLATE", 10**9)
    find_near_duplicates(rows, 0.9)
    assert compared <= 2 * 40 * len(rows)


@pytest.mark.slow
def test_fifty_thousand_short_rows_take_less_than_a_minute() -> None:
    draw = random.Random(0)
    rows = [row(text(draw, LATIN, 10), text(draw, LATIN, 15)) for _ in range(50_000)]
    began = time.perf_counter()
    assert num_alike(rows) == 0
    assert time.perf_counter() - began < 60
