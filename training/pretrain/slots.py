"""Random values for the slots: order numbers, products, cities, amounts, names and the like.

The values are drawn from open sets on purpose (composed products, syllable-built names, many
number shapes): a model that has seen millions of different values learns to copy them from the
question instead of remembering a list.
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable

from training.pretrain.words import WORDS, common_characters

CHARACTERS = common_characters()
SYLLABLES = WORDS["syllables"]


def pseudo_word(rng: random.Random) -> str:
    """An invented English-looking word of two or three syllables."""
    syllables = [
        rng.choice(SYLLABLES["onsets"])
        + rng.choice(SYLLABLES["vowels"])
        + rng.choice(SYLLABLES["ends"])
        for _ in range(rng.choice((1, 2, 2, 3)))
    ]
    return "".join(syllables)


def hanzi(rng: random.Random, low: int, high: int) -> str:
    """A run of random Chinese characters."""
    return "".join(rng.choice(CHARACTERS) for _ in range(rng.randint(low, high)))


def _digits(rng: random.Random, low: int, high: int) -> str:
    return rng.choice("123456789") + "".join(
        rng.choice(string.digits) for _ in range(rng.randint(low, high) - 1)
    )


def _letters(rng: random.Random, low: int, high: int) -> str:
    return "".join(rng.choice(string.ascii_uppercase) for _ in range(rng.randint(low, high)))


class SlotSampler:
    """Draws slot values in one language; `sampler(name)` is a grammar slot source."""

    def __init__(self, rng: random.Random, language: str) -> None:
        self._rng = rng
        self._language = language
        self._kinds: dict[str, Callable[[], str]] = {
            "order": self._order,
            "tracking": self._tracking,
            "product": self._product,
            "city": self._city,
            "amount": self._amount,
            "code": self._code,
            "company": self._company,
            "email": self._email,
            "name": self._name,
            "shop": self._shop,
            "bot": self._bot,
        }

    def __call__(self, name: str) -> str:
        """Draw a value. Raises KeyError for a slot that does not exist."""
        return self._kinds[name]()

    def _order(self) -> str:
        rng = self._rng
        shape = rng.random()
        if shape < 0.4:
            return _digits(rng, 6, 12)
        if shape < 0.75:
            return f"{_letters(rng, 1, 3)}-{_digits(rng, 4, 7)}"
        if shape < 0.9:
            return f"{_letters(rng, 1, 3)}{_digits(rng, 5, 10)}"
        return f"{rng.randint(2020, 2029)}-{_digits(rng, 4, 6)}"

    def _tracking(self) -> str:
        prefix = _letters(self._rng, 1, 3) if self._rng.random() < 0.7 else ""
        return prefix + _digits(self._rng, 8, 13)

    def _product(self) -> str:
        rng, words = self._rng, WORDS[self._language]
        noun = rng.choice(words["nouns"])
        shape = rng.random()
        if shape < 0.2:
            return noun
        if self._language == "zh":
            if shape < 0.6:
                return rng.choice(words["adjectives"]) + noun
            return hanzi(rng, 1, 3) + (rng.choice(noun) if shape < 0.8 else noun)
        if shape < 0.6:
            return f"{rng.choice(words['adjectives'])} {noun}"
        return f"{pseudo_word(rng)} {noun.split()[-1]}"

    def _city(self) -> str:
        if self._rng.random() < 0.4:
            return self._rng.choice(WORDS[self._language]["cities"])
        if self._language == "zh":
            return hanzi(self._rng, 2, 3)
        return pseudo_word(self._rng).capitalize()

    def _amount(self) -> str:
        rng = self._rng
        value = str(rng.randint(5, 9999) if rng.random() < 0.5 else rng.randint(5, 500))
        return f"{value}.{rng.randint(0, 99):02d}" if rng.random() < 0.2 else value

    def _code(self) -> str:
        rng = self._rng
        word = rng.choice(WORDS["en"]["codes"]) if rng.random() < 0.5 else _letters(rng, 3, 7)
        return word + (_digits(rng, 1, 3) if rng.random() < 0.85 else "")

    def _company(self) -> str:
        if self._language == "zh":
            return hanzi(self._rng, 2, 3) + self._rng.choice(WORDS["zh"]["company_ends"])
        name = pseudo_word(self._rng).capitalize()
        return f"{name} {self._rng.choice(WORDS['en']['company_ends'])}"

    def _email(self) -> str:
        host = self._rng.choice(WORDS["en"]["mail_hosts"])
        return f"{pseudo_word(self._rng)}{_digits(self._rng, 1, 3)}@{host}"

    def _name(self) -> str:
        if self._language == "zh":
            return self._rng.choice(WORDS["zh"]["surnames"]) + hanzi(self._rng, 1, 2)
        return f"{self._rng.choice(WORDS['en']['names'])} {pseudo_word(self._rng).capitalize()}"

    def _shop(self) -> str:
        if self._language == "zh":
            return hanzi(self._rng, 2, 3) + self._rng.choice(WORDS["zh"]["shop_ends"])
        name = pseudo_word(self._rng).capitalize()
        return f"{name} {self._rng.choice(WORDS['en']['shop_ends'])}".strip()

    def _bot(self) -> str:
        if self._language == "zh":
            return self._rng.choice(["小", "阿", ""]) + hanzi(self._rng, 1, 2)
        return self._rng.choice([pseudo_word(self._rng).capitalize(), *WORDS["en"]["names"][:6]])
