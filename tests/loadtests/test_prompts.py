"""Prompts of a known number of tokens, whatever the tokenizer does."""

from __future__ import annotations

import random

import pytest

from loadtests.prompts import Uncountable, calibrate


def test_one_token_per_letter_and_a_template() -> None:
    maker = calibrate(lambda text: len(text.split()) + 9)
    assert (maker.cost, maker.overhead) == (1, 9)
    assert len(maker.make(512, random.Random(0)).split()) == 512 - 9


def test_a_template_that_strips_the_first_space_changes_nothing_but_the_overhead() -> None:
    def count(text: str) -> int:
        return 5 + len(text.strip()) // 2  # each further letter with its space is one token

    maker = calibrate(count)
    assert count(maker.make(128, random.Random(0))) == 128


def test_letters_that_cost_more_are_left_out() -> None:
    def count(text: str) -> int:
        return sum(2 if letter in "ae" else 1 for letter in text.split())

    maker = calibrate(count)
    assert maker.cost == 1
    assert not set("ae") & set(maker.letters)
    assert count(maker.make(100, random.Random(0))) == 100


def test_where_every_letter_costs_two_the_length_is_met_to_one_token() -> None:
    def count(text: str) -> int:
        return 2 * len(text.split()) + 3

    maker = calibrate(count)
    assert maker.cost == 2
    assert count(maker.make(128, random.Random(0))) in (127, 128)


def test_prompts_differ_from_the_start() -> None:
    maker, source = calibrate(lambda text: len(text.split())), random.Random(0)
    starts = {maker.make(64, source)[:32] for _ in range(200)}
    assert len(starts) == 200


def test_counts_that_do_not_grow_evenly_are_refused() -> None:
    with pytest.raises(Uncountable, match="do not grow evenly"):
        calibrate(lambda text: int(len(text) ** 0.5))


def test_a_prompt_shorter_than_the_template_is_refused() -> None:
    maker = calibrate(lambda text: len(text.split()) + 40)
    with pytest.raises(ValueError, match="template alone has 40"):
        maker.make(32, random.Random(0))
