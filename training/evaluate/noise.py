"""A question as a hurried person might type it. Every change is drawn from a seed; no model here.

``rate`` is the share of the places that a perturbation could change and does change; at least one
is changed where there is any, so that a short question does not count as a noisy one unseen.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from training.evaluate.homophones import LOOKS_LIKE, SOUNDS_LIKE, WORDS_LIKE
from training.evaluate.suite import Perturbation

_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_WORD = re.compile(r"[A-Za-z]+(?:'[A-Za-z]+)?")
_CHINESE = re.compile(r"[\u4e00-\u9fff]")
_MARKS = re.compile(r"[,.!?;:，。！？；：、]")
_WIDE = dict(zip(",.!?;:", "，。！？；：", strict=True))
_SWAPPED = _WIDE | {wide: plain for plain, wide in _WIDE.items()} | {"、": ","}
_MIN_TYPO = 3  # letters of a word that gets a typo


def perturb(text: str, kind: Perturbation, rate: float, seed: str) -> str:
    """``text`` under noise; equal for equal arguments, unchanged where nothing can change."""
    return _KINDS[kind](text, rate, random.Random(f"{seed}:{kind}:{text}"))


def _typos(text: str, rate: float, draw: random.Random) -> str:
    """English words get a wrong key, a lost, doubled or swapped letter; Chinese characters one
    that looks like them."""
    words = [m for m in _WORD.finditer(text) if len(m[0]) >= _MIN_TYPO]
    looks = [m for m in _CHINESE.finditer(text) if m[0] in LOOKS_LIKE]
    return _replaced(text, words + looks, rate, draw, _mistyped)


def _mistyped(found: str, draw: random.Random) -> str:
    if found in LOOKS_LIKE:
        return draw.choice(LOOKS_LIKE[found])
    place = draw.randrange(1, len(found))  # the first letter is rarely the wrong one
    letter, after = found[place], found[place + 1 : place + 2]
    kind = draw.randrange(4)
    if kind == 0 and letter.lower() in _NEIGHBOURS:
        return found[:place] + draw.choice(_NEIGHBOURS[letter.lower()]) + found[place + 1 :]
    if kind == 1:
        return found[:place] + found[place + 1 :]
    if kind == 2 and after not in ("", letter):
        return found[:place] + after + letter + found[place + 2 :]
    return found[:place] + letter + found[place:]


def _punctuation(text: str, rate: float, draw: random.Random) -> str:
    """The last mark goes or comes; of the others some go, double, or change their width."""
    ended = text.rstrip()
    if ended and _MARKS.fullmatch(ended[-1]):
        return _remarked(ended[:-1], rate, draw)
    end = draw.choice("。！" if _CHINESE.search(text) else ".!") if ended else ""
    return _remarked(ended, rate, draw) + end


def _remarked(text: str, rate: float, draw: random.Random) -> str:
    marks = list(_MARKS.finditer(text))
    return _replaced(text, marks, rate, draw, _other_mark)


def _other_mark(mark: str, draw: random.Random) -> str:
    return draw.choice(["", mark * 2, _SWAPPED.get(mark, "")])


def _case(text: str, rate: float, draw: random.Random) -> str:
    """All small, all capital, or capitals at the wrong places."""
    ways: list[Callable[[str], str]] = [str.lower, str.upper, str.swapcase, str.title]
    draw.shuffle(ways)
    changed = (way(text) for way in ways)
    return next((other for other in changed if other != text), text)


def _homophones(text: str, rate: float, draw: random.Random) -> str:
    characters = [m for m in _CHINESE.finditer(text) if m[0] in SOUNDS_LIKE]
    words = [m for m in _WORD.finditer(text) if m[0].lower() in WORDS_LIKE]
    return _replaced(text, characters + words, rate, draw, _misheard)


def _misheard(found: str, draw: random.Random) -> str:
    if found in SOUNDS_LIKE:
        return draw.choice(SOUNDS_LIKE[found])
    other = draw.choice(WORDS_LIKE[found.lower()])
    return other.capitalize() if found[0].isupper() else other


def _replaced(
    text: str,
    places: list[re.Match[str]],
    rate: float,
    draw: random.Random,
    change: Callable[[str, random.Random], str],
) -> str:
    """``change`` applied to a share of ``places``."""
    if not places or rate == 0:
        return text
    chosen = draw.sample(places, max(1, round(rate * len(places))))
    for match in sorted(chosen, key=lambda match: -match.start()):
        text = text[: match.start()] + change(match[0], draw) + text[match.end() :]
    return text


def _neighbours() -> dict[str, str]:
    """Keys that touch each other on a QWERTY keyboard, whose rows are shifted by half a key."""
    found: dict[str, str] = {}
    for y, row in enumerate(_ROWS):
        for x, key in enumerate(row):
            near = [row[i] for i in (x - 1, x + 1) if 0 <= i < len(row)]
            if y > 0:
                near += [_ROWS[y - 1][i] for i in (x, x + 1) if i < len(_ROWS[y - 1])]
            if y + 1 < len(_ROWS):
                near += [_ROWS[y + 1][i] for i in (x - 1, x) if 0 <= i < len(_ROWS[y + 1])]
            found[key] = "".join(near)
    return found


_NEIGHBOURS = _neighbours()
_KINDS: dict[Perturbation, Callable[[str, float, random.Random], str]] = {
    "typos": _typos,
    "punctuation": _punctuation,
    "case": _case,
    "homophones": _homophones,
}
