"""Is a held-out question too close to a training question? Character 5-gram Jaccard similarity.

Both languages use character 5-grams of the normalised text: compatibility forms folded, lower
case, every digit a 0 (so that two order numbers never hide an equal phrasing), punctuation and
blanks removed. A text shorter than five characters is its own single gram.

    python -m training.pretrain.similarity training/configs/embedded.yaml

compares every question of the whole training stream and prints the closest pairs.
"""

from __future__ import annotations

import argparse
import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from training.pretrain.checker import Question, load_questions
from training.pretrain.corpus import Corpus
from training.pretrain.recipe import load_recipe

GRAM = 5


@dataclass(frozen=True)
class Match:
    """The training question closest to one held-out question."""

    similarity: float
    heldout: str
    training: str


def grams(text: str) -> frozenset[str]:
    """Character 5-grams of the normalised text."""
    text = unicodedata.normalize("NFKC", text).casefold()
    text = re.sub(r"[\W_]+", "", re.sub(r"\d", "0", text))
    return frozenset(text[i : i + GRAM] for i in range(max(1, len(text) - GRAM + 1)))


class HeldoutIndex:
    """An inverted index gram → held-out questions, so that one look-up serves all 200."""

    def __init__(self, questions: list[Question]) -> None:
        self._texts = [question.question for question in questions]
        self._grams = [grams(text) for text in self._texts]
        self._index: dict[str, list[int]] = defaultdict(list)
        for number, owned in enumerate(self._grams):
            for gram in owned:
                self._index[gram].append(number)

    def closest(self, training: Iterable[str]) -> list[Match]:
        """The closest training question for each held-out one, most similar first."""
        best = [Match(0.0, text, "") for text in self._texts]
        for text in training:
            owned = grams(text)
            shared = Counter(number for gram in owned for number in self._index.get(gram, ()))
            for number, common in shared.items():
                score = common / (len(owned) + len(self._grams[number]) - common)
                if score > best[number].similarity:
                    best[number] = Match(score, self._texts[number], text)
        return sorted(best, key=lambda match: -match.similarity)


def main() -> None:
    """Check the stream of the recipe, as far as the run went (or `--pools`)."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--pools", type=int, default=None)
    arguments = parser.parse_args()
    recipe = load_recipe(arguments.config)
    corpus = Corpus(recipe.seed)
    pools = arguments.pools or recipe.checked_pools
    questions = (
        question
        for number in range(pools)
        for conversation in corpus.pool(number, recipe.pool_size)
        for question in conversation.questions()
    )
    matches = HeldoutIndex(load_questions()).closest(questions)
    for match in matches[:10]:
        print(f"{match.similarity:.3f}  {match.heldout}  ~  {match.training}")
    print(json.dumps({"pools": pools, "max_similarity": round(matches[0].similarity, 4)}))


if __name__ == "__main__":
    main()
