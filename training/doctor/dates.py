"""Dates in one form, ISO 8601. Only what can be read in one way: 01/02/2024 stays as it is.

A date is recognised whole or not at all: an address, a path, a version, a range or a moment that
goes on (``2024/1/1T08:00``) is left alone.
"""

from __future__ import annotations

import datetime
import re

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
# "may" is also a verb: that one only as a name.
_MONTH = (
    r"(?:(?i:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|June?|July?|Aug(?:ust)?"
    r"|Sept?(?:ember)?|Oct(?:ober)?|Nov(?:ember)?|Dec(?:ember)?)|May|MAY)"
)
# Nothing that a date could be the middle of may stand before or behind it.
_BEFORE = r"(?<![A-Za-z0-9_./\\:=?&%#@+\-~～])"
_BEHIND = r"(?![A-Za-z0-9_/\\=&@+\-~～]|[.:,][A-Za-z0-9])"
_RANGE = r"(?![ \t]*(?:[至到、和及][ \t]*[0-9]{1,2}[ \t]*[月日号]|[~～—–-][ \t]*[0-9]))"

_DATE = re.compile(
    r"(?P<address>\b[A-Za-z][A-Za-z0-9+.-]*://[!-~]+)"
    rf"|{_BEFORE}(?P<y1>[0-9]{{4}})[ \t]*年[ \t]*(?P<m1>[0-9]{{1,2}})[ \t]*月[ \t]*"
    rf"(?P<d1>[0-9]{{1,2}})[ \t]*[日号]{_RANGE}(?P<next>[A-Za-z0-9])?"
    rf"|{_BEFORE}(?P<y2>[0-9]{{4}})(?P<mark>[/-])(?P<m2>[0-9]{{1,2}})(?P=mark)"
    rf"(?P<d2>[0-9]{{1,2}}){_BEHIND}"
    rf"|{_BEFORE}(?P<d3>[0-9]{{1,2}})(?:st|nd|rd|th)?[ \t](?P<m3>{_MONTH})\.?,?[ \t]"
    rf"(?P<y3>[0-9]{{4}}){_BEHIND}"
    rf"|{_BEFORE}(?P<m4>{_MONTH})\.?[ \t](?P<d4>[0-9]{{1,2}})(?:st|nd|rd|th)?,?[ \t]"
    rf"(?P<y4>[0-9]{{4}}){_BEHIND}"
)
_HAS_YEAR = re.compile(r"[0-9]{4}")


def unify_dates(text: str) -> str:
    """``2024年1月1日``, ``2024/1/1``, ``2024-1-1``, ``01 Jan 2024``, ``Jan 1st, 2024`` to ISO."""
    return _DATE.sub(_iso, text) if _HAS_YEAR.search(text) else text


def _iso(found: re.Match[str]) -> str:
    part = found.groupdict()
    if part["address"]:
        return found[0]
    year, month, day = (next(filter(None, (part[f"{key}{n}"] for n in "1234"))) for key in "ymd")
    number = int(month) if month.isdigit() else _MONTHS.index(month[:3].lower()) + 1
    try:
        date = datetime.date(int(year), number, int(day))
    except ValueError:  # 2024/13/45 is no date
        return found[0]
    # 2024年1月1日12时: the 日 that parted the two is gone
    return date.isoformat() + (f" {part['next']}" if part["next"] else "")
