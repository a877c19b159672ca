"""Personal data in text: phone, id card, bank card, e-mail, in Chinese and English forms.

A number counts where its own check holds: the date and checksum of an id card, the issuer and Luhn
sum of a bank card. Names and addresses are not looked for: no pattern tells them from other words.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable
from typing import NamedTuple


class Found(NamedTuple):
    """One piece of personal data: ``text[start:end]``."""

    kind: str
    start: int
    end: int


PLACEHOLDERS = {
    "email": "[EMAIL]",
    "id_card": "[ID_CARD]",
    "bank_card": "[BANK_CARD]",
    "phone": "[PHONE]",
}


def find_personal_data(text: str) -> list[Found]:
    """In order, without overlaps; full-width digits are read as digits."""
    if not _MAY_HOLD.search(text):
        return []
    text = text.translate(_NARROW)
    found: list[Found] = []
    taken = bytearray(len(text))
    for kind, pattern, holds in _PATTERNS:
        for match in pattern.finditer(text):
            start, end = match.span()
            if not any(taken[start:end]) and holds(match[0]):
                taken[start:end] = b"\x01" * (end - start)
                found.append(Found(kind, start, end))
    return sorted(found, key=lambda each: each.start)


def redact(text: str) -> str:
    """Personal data replaced by placeholders such as ``[PHONE]``."""
    for kind, start, end in reversed(find_personal_data(text)):
        text = text[:start] + PLACEHOLDERS[kind] + text[end:]
    return text


# --- checks ---


def is_chinese_id(number: str) -> bool:
    """18 characters: a birth date that exists and the checksum of GB 11643 (ISO 7064 MOD 11-2)."""
    try:
        datetime.date(int(number[6:10]), int(number[10:12]), int(number[12:14]))
    except ValueError:
        return False
    total = sum(int(d) * pow(2, 17 - place, 11) for place, d in enumerate(number[:17]))
    return "10X98765432"[total % 11] == number[17].upper()


def is_social_security_number(number: str) -> bool:
    """The form 123-45-6789, without the areas, groups and serials that are never given out."""
    area, group, serial = number.split("-")
    return area not in ("000", "666") and area < "900" and group != "00" and serial != "0000"


def is_bank_card(number: str) -> bool:
    """Beginning and length of a known issuer, and the Luhn sum (ISO/IEC 7812-1)."""
    digits = re.sub(r"[ -]", "", number)
    if not _ISSUERS.fullmatch(digits):
        return False
    doubled = [int(d) * (1 + place % 2) for place, d in enumerate(reversed(digits))]
    return sum(d - 9 if d > 9 else d for d in doubled) % 10 == 0


_ISSUERS = re.compile(
    r"62\d{14,17}|9558\d{15}|4\d{12}(?:\d{3}){0,2}|(?:5[1-5]|2[2-7])\d{14}|3[47]\d{13}"
    r"|(?:6011|65\d\d|64[4-9]\d)\d{12}|35\d{14}|3(?:0[0-5]|[68]\d)\d{11}"
)


def _is_telephone(number: str) -> bool:
    return 8 <= sum(c.isdigit() for c in number) <= 15


def _id_holds(number: str) -> bool:
    return is_social_security_number(number) if "-" in number else is_chinese_id(number)


# --- patterns ---

_NARROW = str.maketrans("０１２３４５６７８９＠．－＋（）　Ｘｘ", "0123456789@.-+() Xx")
_MAY_HOLD = re.compile(r"[@＠]|[0-9０-９](?:[ .()（）－-]{0,2}[0-9０-９]){7}")

# Whole numbers only: no part of a longer one, of a word, of a decimal or of a version.
_BEFORE = r"(?<![A-Za-z0-9_])(?<![A-Za-z0-9][.\-+/=])"
_BEHIND = r"(?![A-Za-z0-9_]|[.\-/][A-Za-z0-9])"

_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9](?:[A-Za-z0-9._%+-]{0,62}[A-Za-z0-9_+-])?"
    r"@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9])"
)
_ID_CARD = re.compile(
    rf"{_BEFORE}(?:[1-9][0-9]{{5}}(?:18|19|20)[0-9]{{9}}[0-9Xx]|[0-9]{{3}}-[0-9]{{2}}-[0-9]{{4}})"
    rf"{_BEHIND}"
)
_BANK_CARD = re.compile(rf"{_BEFORE}[2-69](?:[ -]?[0-9]){{12,18}}{_BEHIND}")
_PHONE = re.compile(
    rf"{_BEFORE}(?:"
    r"(?:(?:\+|00)86[ -]?)?1[3-9][0-9](?:[ -]?[0-9]{4}){2}"  # Chinese mobile
    r"|(?:(?:\+|00)86[ -]?)?\(?0[0-9]{2,3}\)?[ -][2-9][0-9]{2,3}[ -]?[0-9]{4}"  # and fixed line
    r"|(?:\+?1[-. ]?)?(?:\([2-9][0-9]{2}\) ?|[2-9][0-9]{2}[-. ])[2-9][0-9]{2}[-. ][0-9]{4}"  # US
    r"|\+[1-9][0-9]{0,2}(?:[ -]?\(?[0-9]{1,4}\)?){2,5}"  # E.164
    rf"){_BEHIND}"
)
# The most specific first: an id card is also a run of digits, a card number holds a telephone's.
_PATTERNS: tuple[tuple[str, re.Pattern[str], Callable[[str], bool]], ...] = (
    ("email", _EMAIL, bool),
    ("id_card", _ID_CARD, _id_holds),
    ("bank_card", _BANK_CARD, is_bank_card),
    ("phone", _PHONE, _is_telephone),
)
