"""Patterns of which one can say whether a text may yet become one. Knows no format."""

from __future__ import annotations

import re
from functools import reduce

SPACE = (r"\s*",)
NAME = (r"(?P<name>[a-zA-Z0-9_.-]{1,64})",)
Atoms = tuple[str, ...]


def literal(text: str) -> Atoms:
    """The text, one pattern for each character."""
    return tuple(map(re.escape, text))


def optional(atoms: Atoms) -> str:
    return f"(?:{''.join(atoms)})?"


class Growing:
    """A pattern, made of atoms that are each there whole or not at all.

    ``whole`` is the pattern if not all atoms must be there.
    """

    def __init__(self, atoms: Atoms, whole: str | None = None) -> None:
        self._whole = re.compile("".join(atoms) if whole is None else whole)
        begun = reduce(lambda rest, atom: f"(?:{atom}{rest})?", reversed(atoms), "")
        self._begun = re.compile(begun)

    def match(self, text: str, at: int) -> re.Match[str] | None:
        """At that place, whatever follows."""
        return self._whole.match(text, at)

    def may_come(self, text: str, at: int) -> bool:
        """Whether all that is there may be the beginning of it."""
        return self._begun.fullmatch(text, at) is not None
