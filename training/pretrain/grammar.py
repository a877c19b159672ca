"""A tiny phrase grammar: `{a|b}` chooses, `<slot>` fills, `{?slot:yes|no}` asks if it is filled.

Purpose: a few hundred patterns written by hand expand into millions of different questions and
answers, lazily, from a seeded generator. `$name` fragments come from `phrases/macros.txt`.
This module knows nothing of shops, tokens or models.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

PHRASES = Path(__file__).parent / "phrases"
LANGUAGES = ("zh", "en")
SlotSource = Callable[[str], str]


class PhraseError(ValueError):
    """A phrase file does not follow the grammar; the message names the pattern."""


@dataclass(frozen=True)
class Slot:
    """`<name>`: replaced by the value bound to that name."""

    name: str


@dataclass(frozen=True)
class Choice:
    """`{a|b|c}`: one alternative, all equally likely."""

    options: tuple[Pattern, ...]


@dataclass(frozen=True)
class Condition:
    """`{?name:yes|no}`: the first part if the slot is bound, else the second."""

    name: str
    yes: Pattern
    no: Pattern


@dataclass(frozen=True)
class Pattern:
    """A compiled pattern: literal strings, slots, choices and conditions in order."""

    parts: tuple[str | Slot | Choice | Condition, ...]

    def expand(self, rng: random.Random, bound: dict[str, str], source: SlotSource | None) -> str:
        """Fill the pattern in; an unbound slot is drawn from `source` and stays bound.

        Raises PhraseError for an unbound slot without a source (an answer may only use slots
        that the question brought).
        """
        return "".join(self._pieces(rng, bound, source))

    def _pieces(
        self, rng: random.Random, bound: dict[str, str], source: SlotSource | None
    ) -> Iterator[str]:
        for part in self.parts:
            if isinstance(part, str):
                yield part
            elif isinstance(part, Slot):
                yield _slot_value(part.name, bound, source)
            elif isinstance(part, Choice):
                yield rng.choice(part.options).expand(rng, bound, source)
            else:
                branch = part.yes if part.name in bound else part.no
                yield branch.expand(rng, bound, source)


def _slot_value(name: str, bound: dict[str, str], source: SlotSource | None) -> str:
    if name not in bound:
        if source is None:
            raise PhraseError(f"the slot <{name}> has no value here; put it into {{?{name}:…}}")
        bound[name] = source(name)
    return bound[name]


@dataclass
class _Parser:
    """Recursive descent over one pattern; `position` is the only state."""

    text: str
    macros: dict[str, str]
    position: int = 0

    def pattern(self, stops: str) -> Pattern:
        parts: list[str | Slot | Choice | Condition] = []
        literal = ""
        while self.position < len(self.text) and self.text[self.position] not in stops:
            part = self._part()
            if isinstance(part, str):
                literal += part
                continue
            if literal:
                parts.append(literal)
                literal = ""
            parts.append(part)
        if literal:
            parts.append(literal)
        return Pattern(tuple(parts))

    def _part(self) -> str | Slot | Choice | Condition:
        match = re.compile(r"<([a-z]+)>|\$([a-z]+)").match(self.text, self.position)
        if match:
            self.position = match.end()
            return Slot(match[1]) if match[1] else self._macro(match[2])
        if self.text[self.position] == "{":
            return self._braces()
        self.position += 1
        return self.text[self.position - 1]

    def _macro(self, name: str) -> Choice:
        if name not in self.macros:
            raise PhraseError(f"unknown fragment ${name} in {self.text!r}")
        return _choice(self.macros[name], self.macros)

    def _braces(self) -> Choice | Condition:
        self.position += 1
        condition = re.compile(r"\?([a-z]+):").match(self.text, self.position)
        if condition:
            self.position = condition.end()
        options = [self.pattern("|}")]
        while self.position < len(self.text) and self.text[self.position] == "|":
            self.position += 1
            options.append(self.pattern("|}"))
        if self.position >= len(self.text):
            raise PhraseError(f"a brace is not closed in {self.text!r}")
        self.position += 1
        if condition is None:
            return Choice(tuple(options))
        return Condition(condition[1], options[0], options[1] if len(options) > 1 else Pattern(()))


def _choice(alternatives: str, macros: dict[str, str]) -> Choice:
    parser = _Parser("{" + alternatives + "}", macros)
    return parser._braces()  # type: ignore[return-value]


def compile_pattern(text: str, macros: dict[str, str]) -> Pattern:
    """Compile one pattern. Raises PhraseError if it is malformed or names an unknown fragment."""
    parser = _Parser(text, macros)
    pattern = parser.pattern("}")
    if parser.position < len(text):
        raise PhraseError(f"a stray brace in {text!r}")
    return pattern


@dataclass
class Topic:
    """What a customer may want: patterns for question and answer, per language."""

    name: str
    questions: dict[str, list[Pattern]] = field(default_factory=lambda: {"zh": [], "en": []})
    answers: dict[str, list[Pattern]] = field(default_factory=lambda: {"zh": [], "en": []})


def load_macros(path: Path = PHRASES / "macros.txt") -> dict[str, dict[str, str]]:
    """Read the shared fragments: language → name → alternatives."""
    macros: dict[str, dict[str, str]] = {language: {} for language in LANGUAGES}
    for line in path.read_text(encoding="utf-8").splitlines():
        match = re.match(r"(zh|en) \$([a-z]+) = (.*)", line)
        if match:
            macros[match[1]][match[2]] = match[3]
    return macros


def load_topics(folder: Path = PHRASES) -> dict[str, Topic]:
    """Read every phrase file: `[topic]`, then lines `zh? …`, `zh! …`, `en? …`, `en! …`."""
    macros = load_macros(folder / "macros.txt")
    topics: dict[str, Topic] = {}
    for path in sorted(folder.glob("*.txt")):
        if path.name == "macros.txt":
            continue
        topic: Topic | None = None
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("["):
                topic = topics.setdefault(line.strip("[]"), Topic(line.strip("[]")))
            elif line.strip() and not line.startswith("#"):
                _add_line(line, topic, macros, path)
    return topics


def _add_line(
    line: str, topic: Topic | None, macros: dict[str, dict[str, str]], path: Path
) -> None:
    match = re.match(r"(zh|en)([?!]) (.*)", line)
    if match is None or topic is None:
        raise PhraseError(f"{path.name}: not a phrase line: {line!r}")
    side = topic.questions if match[2] == "?" else topic.answers
    side[match[1]].append(compile_pattern(match[3], macros[match[1]]))
