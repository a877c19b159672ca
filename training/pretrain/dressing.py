"""How people vary a question: synonyms, openers, capitals, typos. Slot values stay whole."""

from __future__ import annotations

import random
import re

from training.pretrain.words import load_yaml

FRAMES = load_yaml("frames.yaml")
CASUAL = {"refuse_offtopic", "refuse_harm", "refuse_privacy", "refuse_advice"}
SYNONYM_RATE = 0.35


def _load_synonyms(language: str) -> tuple[re.Pattern[str], dict[str, list[str]]]:
    """One expression that finds every known word, longest first, and each word's alternatives."""
    table: dict[str, list[str]] = {}
    for group in load_yaml("synonyms.yaml")[language]:
        for word in group:
            table[word.lower()] = table.get(word.lower(), []) + [w for w in group if w != word]
    # A single Chinese character is too often a part of another word to be replaced.
    known = [word for word in table if language == "en" or len(word) > 1]
    words = "|".join(re.escape(word) for word in sorted(known, key=len, reverse=True))
    border = r"\b" if language == "en" else ""
    return re.compile(f"{border}({words}){border}", re.IGNORECASE), table


SYNONYMS = {language: _load_synonyms(language) for language in ("zh", "en")}


def reword(rng: random.Random, text: str, language: str, values: list[str]) -> str:
    """Replace some words by synonyms, outside the slot values."""
    pattern, table = SYNONYMS[language]

    def swap(match: re.Match[str]) -> str:
        if rng.random() > SYNONYM_RATE:
            return match[0]
        return rng.choice(table[match[0].lower()])

    if not values:
        return pattern.sub(swap, text)
    fixed = "|".join(re.escape(value) for value in sorted(values, key=len, reverse=True))
    pieces = re.split(f"({fixed})", text)
    return "".join(
        piece if number % 2 else pattern.sub(swap, piece) for number, piece in enumerate(pieces)
    )


def dress(rng: random.Random, text: str, language: str, topic: str, values: list[str]) -> str:
    """Give a question an opener, a closer, other capitals, other words or a typo."""
    talk = topic.startswith("smalltalk")
    if rng.random() < 0.6:
        text = reword(rng, text, language, values)
    if rng.random() < (0.0 if talk else 0.12 if topic in CASUAL else 0.28):
        text = rng.choice(FRAMES["openers"][language]) + text
    if rng.random() < (0.1 if talk else 0.28):
        text = text.rstrip("？?。！!~，,") + rng.choice(FRAMES["closers"][language])
    elif language == "en" and rng.random() < 0.4:
        text = text.rstrip("?.!") + rng.choice("?.")
    if language == "zh":
        return text
    if rng.random() < 0.05:
        text = _typo(rng, text, values)
    return text if rng.random() < 0.3 else capital(text)


def _typo(rng: random.Random, text: str, values: list[str]) -> str:
    """Swap two letters inside a word that is no slot value."""
    words = text.split(" ")
    spots = [i for i, word in enumerate(words) if word.isalpha() and len(word) > 3]
    spots = [i for i in spots if not any(words[i] in value for value in values)]
    if not spots:
        return text
    spot = rng.choice(spots)
    word, cut = words[spot], rng.randint(1, len(words[spot]) - 3)
    words[spot] = word[:cut] + word[cut + 1] + word[cut] + word[cut + 2 :]
    return " ".join(words)


def tidy(text: str) -> str:
    """Remove the double spaces and stray blanks that optional parts leave behind."""
    text = re.sub(r" {2,}", " ", text).strip()
    return re.sub(r" ([,.?!:;](?:\s|$))", r"\1", text)


def capital(text: str) -> str:
    """The text with its first letter as a capital, if it is a Latin one."""
    return text[:1].upper() + text[1:] if text[:1].isascii() else text
