"""Rules that tidy text without changing what it says. Knows text only, no rows.

Code in backticks is left as it is. The rules are repeated until none changes anything, because one
may make work for another (``&amp;lt;`` is an entity in an entity): so cleaning twice is cleaning
once.
"""

from __future__ import annotations

import html
import re
import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import groupby
from typing import NamedTuple

from training.doctor.dates import unify_dates


class Edit(NamedTuple):
    """One rule's work on one text."""

    rule: str
    before: str
    after: str


def clean_text(text: str, rules: Sequence[str]) -> tuple[str, list[Edit]]:
    """The cleaned text and what each rule did on the way, in order."""
    edits: list[Edit] = []
    chosen = [(name, rule) for name, rule in RULES.items() if name in rules]
    while True:
        start = text
        for name, rule in chosen:
            after = _outside_code(text, rule)
            if after != text:
                edits.append(Edit(name, text, after))
                text = after
        if text == start:
            return text, edits


# --- code ---

_TICKS = re.compile(r"`+")
_FENCE = 3  # ticks from which a block may run over several lines


def _outside_code(text: str, rule: Callable[[str], str]) -> str:
    if "`" not in text:
        return rule(text)
    pieces: list[str] = []
    end = 0
    for start, stop in _code_spans(text):
        pieces += [_between(text[end:start], rule, end > 0, True), text[start:stop]]
        end = stop
    pieces.append(_between(text[end:], rule, end > 0, False))
    return "".join(pieces)


def _between(text: str, rule: Callable[[str], str], after_code: bool, before_code: bool) -> str:
    """Applies the rule to text beside code: what ends the text there is no end of a line."""
    left, right = "\ue000" * after_code, "\ue000" * before_code  # private use stands for the code
    cleaned = rule(left + text + right)
    return cleaned[len(left) : len(cleaned) - len(right)]


def _code_spans(text: str) -> Iterator[tuple[int, int]]:
    """As CommonMark has it: a run of backticks up to the next run as long.

    Runs of one or two stay within their line: an accent typed as a backtick protects little. An
    open fence reaches to the end.
    """
    runs = [(match.start(), match.end()) for match in _TICKS.finditer(text)]
    by_length: dict[int, list[int]] = {}
    for start, stop in runs:
        by_length.setdefault(stop - start, []).append(start)
    end = 0
    for start, stop in runs:
        length = stop - start
        if start < end:
            continue
        same = by_length[length]
        position = bisect_left(same, stop)
        close = same[position] if position < len(same) else None
        if close is not None and (length >= _FENCE or "\n" not in text[stop:close]):
            end = close + length
            yield start, end
        elif length >= _FENCE and close is None:
            end = len(text)
            yield start, end


# --- html ---

# Elements of HTML, so that <think>, <tool_call> and List<String> are none.
_ELEMENTS = (
    "a|abbr|address|article|aside|b|bdi|bdo|big|blockquote|body|br|button|caption|center|cite|code|"
    "col|colgroup|dd|del|details|dfn|div|dl|dt|em|figcaption|figure|font|footer|form|h[1-6]|head|"
    "header|hr|html|i|iframe|img|input|ins|kbd|label|legend|li|link|main|mark|meta|nav|noscript|ol|"
    "optgroup|option|p|pre|q|rp|rt|ruby|s|samp|section|select|small|span|strike|strong|sub|summary|"
    "sup|svg|table|tbody|td|textarea|tfoot|th|thead|time|title|tr|tt|u|ul|var|wbr"
)
_BLOCKS = re.compile(
    r"</?(?:address|article|aside|blockquote|br|caption|center|dd|div|dl|dt|figcaption|figure|footer"
    r"|form|h[1-6]|header|hr|li|main|nav|ol|p|pre|section|table|tbody|tfoot|thead|tr|ul)\b",
    re.IGNORECASE,
)
_ATTRIBUTE = r"""\s+[A-Za-z_:@][\w:.-]*\s*=\s*(?:"[^"<>]*"|'[^'<>]*'|[^\s"'<>=`]+)"""
_BARE = r"\s+(?:async|checked|controls|defer|disabled|hidden|nowrap|readonly|required|selected)"
_TAG = re.compile(
    rf"</(?:{_ELEMENTS})\s*>|<(?:{_ELEMENTS})(?:{_ATTRIBUTE}|{_BARE})*\s*/?>", re.IGNORECASE
)
# Each part stops at the next beginning, so that a text full of beginnings is read once.
_HIDDEN = re.compile(
    r"<!--(?:(?!<!--|-->).)*-->|<!doctype\s[^<>]*>|<(script|style)\b[^<>]*>"
    r"(?:(?!<(?:script|style)\b|</\1).)*</\1\s*>",
    re.IGNORECASE | re.DOTALL,
)
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_AMPERSANDS = re.compile(r"&(?:amp;|#38;|#[xX]26;)+")


def _remove_html(text: str) -> str:
    if "<" in text:
        text = _HIDDEN.sub("", text)
        text = _TAG.sub(lambda tag: "\n" if _BLOCKS.match(tag[0]) else "", text)
    if "&" in text:
        # Only whole entities: "a=1&copy=2" is an address and no copyright sign.
        text = _ENTITY.sub(lambda entity: html.unescape(entity[0]), _AMPERSANDS.sub("&", text))
    return text


# --- control characters ---

# Colours of a terminal; C0 and C1 but for tab and line ends; invisible marks but for the joiners
# that emoji and Persian need.
_CONTROL = re.compile(
    r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u200b\u200e\u200f"
    r"\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb]"
)


def _remove_control(text: str) -> str:
    return _CONTROL.sub("", text)


# --- Unicode ---

# Chinese punctuation that NFKC would make ASCII.
_KEPT = frozenset("，。！？：；（）…～")


def _normalise(text: str) -> str:
    if unicodedata.is_normalized("NFKC", text):
        return text
    pieces = groupby(text, key=_is_kept)
    return "".join(
        "".join(piece) if kept else unicodedata.normalize("NFKC", "".join(piece))
        for kept, piece in pieces
    )


@lru_cache(maxsize=4096)
def _is_kept(character: str) -> bool:
    """Also what would bring in a digit without being one: x² is not x2, ½ not 1⁄2."""
    if character in _KEPT:
        return True
    if unicodedata.category(character) == "Nd":
        return False
    return any(c.isdecimal() for c in unicodedata.normalize("NFKC", character))


# --- numbers ---

_WIDE_DIGITS = str.maketrans("０１２３４５６７８９", "0123456789")
_WIDE_POINT = re.compile(r"(?<=[0-9])．(?=[0-9])")
_WIDE_PERCENT = re.compile(r"(?<=[0-9])％")


def _unify_numbers(text: str) -> str:
    if text.isascii():
        return text
    text = _WIDE_POINT.sub(".", text.translate(_WIDE_DIGITS))
    return _WIDE_PERCENT.sub("%", text)


# --- whitespace ---

_LINE_END = re.compile(r"\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_WIDE_SPACE = re.compile(r"[\xa0\u1680\u2000-\u200a\u202f\u205f\u3000]")
_INNER_RUN = re.compile(r"(?<=[^ \t\n])[ \t]+(?=[^ \t\n])")  # indentation says something
_EMPTY_LINES = re.compile(r"\n{3,}")


def _unify_whitespace(text: str) -> str:
    text = _WIDE_SPACE.sub(" ", _LINE_END.sub("\n", text))
    lines = (line.rstrip(" \t") for line in _INNER_RUN.sub(_one_space, text).split("\n"))
    return _EMPTY_LINES.sub("\n\n", "\n".join(lines)).strip()


def _one_space(run: re.Match[str]) -> str:
    return "\t" if run[0] == "\t" else " "  # a single tab separates columns


# In this order: what one rule uncovers the next one sees.
RULES: dict[str, Callable[[str], str]] = {
    "html": _remove_html,
    "control": _remove_control,
    "nfkc": _normalise,
    "numbers": _unify_numbers,
    "dates": unify_dates,
    "whitespace": _unify_whitespace,
}
