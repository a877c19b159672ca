"""The corpus: seeded, lazy, and far from the held-out questions."""

from __future__ import annotations

import itertools
import random
import re

import pytest

from training.pretrain.checker import load_criteria, load_questions
from training.pretrain.corpus import Corpus
from training.pretrain.grammar import PhraseError, compile_pattern, load_topics
from training.pretrain.recipe import load_recipe
from training.pretrain.similarity import HeldoutIndex, grams
from training.pretrain.slots import SlotSampler

from .paths import CONFIG, TOO_CLOSE

LIMIT = 0.5
SAMPLED_POOLS = 4


def test_a_pool_depends_on_seed_and_number_only() -> None:
    first, again = Corpus(7).pool(3, 40), Corpus(7).pool(3, 40)
    assert first == again
    assert Corpus(7).pool(4, 40) != first
    assert Corpus(8).pool(3, 40) != first


def test_every_heldout_topic_has_questions_answers_and_criteria() -> None:
    topics, criteria = load_topics(), load_criteria()
    for question in load_questions():
        assert topics[question.topic].questions[question.language]
        assert topics[question.topic].answers[question.language]
        assert criteria[question.topic][question.language]


def test_every_pattern_expands_without_leftovers() -> None:
    for topic in load_topics().values():
        for language in ("zh", "en"):
            rng = random.Random(topic.name)
            for pattern in topic.questions[language]:
                bound: dict[str, str] = {}
                question = pattern.expand(rng, bound, SlotSampler(rng, language))
                answers = [a.expand(rng, dict(bound), None) for a in topic.answers[language]]
                for text in (question, *answers):
                    assert not re.search(r"[{}<>|]|\$[a-z]", text), (topic.name, text)


def test_answers_repeat_the_slots_of_their_question() -> None:
    topic = load_topics()["order_status"]
    rng = random.Random(1)
    bound: dict[str, str] = {"order": "ZX-40417"}
    for language in ("zh", "en"):
        for answer in topic.answers[language]:
            assert "ZX-40417" in answer.expand(rng, bound, None)


@pytest.mark.parametrize("text", ["{a|b", "a}", "$nosuchfragment"])
def test_malformed_patterns_are_refused(text: str) -> None:
    with pytest.raises(PhraseError):
        compile_pattern(text, {})


def test_heldout_phrasings_are_far_from_the_training_stream() -> None:
    """A sample of the stream; `python -m training.pretrain.similarity` checks all of it."""
    recipe = load_recipe(CONFIG)
    corpus = Corpus(recipe.seed)
    conversations = itertools.chain.from_iterable(
        corpus.pool(number, recipe.pool_size) for number in range(SAMPLED_POOLS)
    )
    questions = (text for conversation in conversations for text in conversation.questions())
    matches = HeldoutIndex(load_questions()).closest(questions)
    close = {match.heldout for match in matches if match.similarity > LIMIT}
    assert close <= set(TOO_CLOSE), close


def test_similarity_sees_through_digits_case_and_punctuation() -> None:
    assert grams("Where is LK-123?") == grams("where is lk 987")
    assert grams("订单 12 到哪了？") == grams("订单34到哪了")
    assert not grams("取消订单 12") & grams("发票抬头错了")
