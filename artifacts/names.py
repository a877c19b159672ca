"""How adapters are named: ``name``, ``name@3``, ``name@champion``. Knows no registry."""

from __future__ import annotations

import re
from dataclasses import dataclass

from artifacts.errors import InvalidName

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
VERSION = re.compile(r"[1-9][0-9]{0,8}")
CHAMPION = "champion"
LATEST = "latest"  # computed, never stored


@dataclass(frozen=True)
class AdapterRef:
    """A parsed reference: at most one of version and alias is set, a bare name has neither."""

    name: str
    version: int | None = None
    alias: str | None = None

    def __str__(self) -> str:
        suffix = self.version if self.version is not None else self.alias
        return self.name if suffix is None else f"{self.name}@{suffix}"


def check_name(name: str) -> str:
    """``name`` itself, or InvalidName."""
    if not NAME.fullmatch(name):
        raise InvalidName(
            f"{name!r} is not an adapter name: use 1 to 64 of a-z 0-9 . _ - and begin with a "
            "letter or digit",
            param="name",
        )
    return name


def check_alias(alias: str) -> str:
    """``alias`` itself, or InvalidName: digits read as a version, ``latest`` moves by itself."""
    if alias == LATEST:
        raise InvalidName(
            "'latest' always names the newest version and cannot be set; choose another alias",
            param="alias",
        )
    if not NAME.fullmatch(alias) or alias.isdigit():
        raise InvalidName(
            f"{alias!r} is not an alias: use 1 to 64 of a-z 0-9 . _ -, begin with a letter or "
            "digit, and not digits alone",
            param="alias",
        )
    return alias


def parse_ref(text: str) -> AdapterRef:
    """``name``, ``name@3`` or ``name@alias``; anything else is InvalidName."""
    name, at, suffix = text.partition("@")
    check_name(name)
    if not at:
        return AdapterRef(name)
    if VERSION.fullmatch(suffix):
        return AdapterRef(name, version=int(suffix))
    if suffix == LATEST:
        return AdapterRef(name, alias=LATEST)
    if suffix.isdigit():
        raise InvalidName(
            f"{text!r}: versions count from 1 without leading zeros, such as {name}@1",
            param="version",
        )
    return AdapterRef(name, alias=check_alias(suffix))
