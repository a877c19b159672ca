"""What exists on the server as far as the soak knows, shared by all who use and change it."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from dataclasses import dataclass, field

from loadtests.soak.book import Book
from loadtests.soak.meaning import GONE, Meaning, Sayings, Stickiness

TRIAL = "trial"  # the name that the experiment runs under
BASE = "base"  # what the server calls the base in headers and statistics


@dataclass
class Version:
    """One adapter version. ``is_leaving``: its removal has been sent, a 404 is legal from then."""

    name: str
    number: int
    is_leaving: bool = False

    @property
    def id(self) -> str:
        return f"{self.name}@{self.number}"


@dataclass
class World:
    """Versions by id, and what ids that move may mean."""

    base_id: str
    sayings: Sayings
    random: random.Random
    book: Book = field(default_factory=Book)
    versions: dict[str, Version] = field(default_factory=dict)
    meanings: dict[str, Meaning] = field(default_factory=dict)  # bare names and name@alias
    stickiness: Stickiness = field(default_factory=Stickiness)
    started_s: float = field(default_factory=time.monotonic)
    _open: asyncio.Event = field(default_factory=asyncio.Event)
    _over: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def age_s(self) -> float:
        """Seconds since the soak began."""
        return time.monotonic() - self.started_s

    # --- when to send ---------------------------------------------------------------------------

    def open(self) -> None:
        """Let everybody send."""
        self._open.set()

    def close(self) -> None:
        """Nobody begins a request until `open`; those that run go on."""
        self._open.clear()

    async def may_go_on(self) -> bool:
        """Waits while closed; False once the soak is over."""
        await self._open.wait()
        return not self._over.is_set()

    async def is_over_within(self, seconds: float) -> bool:
        """Waits for the end of the soak, for so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._over.wait()
        return self._over.is_set()

    def end(self) -> None:
        """Nobody begins anything any more."""
        self._over.set()
        self._open.set()

    # --- what to ask ----------------------------------------------------------------------------

    def standing(self, name: str | None = None) -> list[Version]:
        """Versions that nobody is removing, of one name or of all."""
        return [
            version
            for version in self.versions.values()
            if not version.is_leaving and name in (None, version.name)
        ]

    def moving(self) -> list[str]:
        """Ids that move and mean something now, the experiment's left out."""
        ids = (id for id, meaning in self.meanings.items() if meaning.now != {GONE})
        return [id for id in ids if id != TRIAL]

    def add(self, version_id: str) -> Version:
        """A version that the server has just registered."""
        name, _, number = version_id.rpartition("@")
        version = self.versions[version_id] = Version(name, int(number))
        return version

    def may_be_gone(self, model: str, sent_s: float) -> bool:
        """Whether a 404 is legal for this id, asked at ``sent_s`` and answered now."""
        if (version := self.versions.get(model)) is not None:
            return version.is_leaving
        if (meaning := self.meanings.get(model)) is not None:
            return GONE in meaning.between(sent_s, time.monotonic())
        return "@" in model

    def wrong_version(self, model: str, version: str, sent_s: float, now: float) -> str | None:
        """Why ``version`` cannot answer for ``model``; None if it can."""
        asked = BASE if model == self.base_id else model
        meaning = self.meanings.get(model)
        allowed = {asked} if meaning is None else meaning.between(sent_s, now)
        if version in allowed:
            return None
        return f"{model} was answered by {version}, right were {sorted(allowed)}"
