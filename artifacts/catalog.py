"""All adapter versions and aliases at one moment, in memory. Knows no database."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from artifacts.errors import Conflict, NotFound
from artifacts.manifest import AdapterManifest
from artifacts.names import CHAMPION, LATEST, AdapterRef

MAX_SHOWN = 20  # names in a message


@dataclass(frozen=True)
class AdapterVersion:
    """One immutable version; ``path`` holds its PEFT folder."""

    name: str
    version: int
    path: Path
    content_hash: str
    manifest: AdapterManifest

    @property
    def id(self) -> str:
        return f"{self.name}@{self.version}"

    @property
    def is_fit(self) -> bool:
        """Whether it may answer where nobody named its number."""
        return self.manifest.gate != "failed"

    def refuse_unfit(self, use: str) -> None:
        """Conflict if its gates failed; ``use`` says what it was wanted for."""
        if self.is_fit:
            return
        reasons = "; ".join(str(gate) for gate in self.manifest.failed_gates)
        raise Conflict(
            f"{self.id} failed its gate ({reasons}), so {use} may not point to it; ask it as "
            f"{self.id}, or point to it all the same with force, which is recorded"
        )


@dataclass(frozen=True)
class Catalog:
    """What references mean. Never changes: a later state of the registry is another catalog."""

    versions: Mapping[str, Mapping[int, AdapterVersion]]  # by name and number, both ascending
    stored_aliases: Mapping[str, Mapping[str, int]]  # ``latest`` is computed and not among them

    def get(self, name: str, version: int) -> AdapterVersion:
        """NotFound names what exists."""
        found = self.versions.get(name, {}).get(version)
        if found is None:
            raise NotFound(f"there is no adapter {name}@{version}; {self._known(name)}")
        return found

    def resolve(self, ref: AdapterRef) -> AdapterVersion:
        """What a reference means; a bare name means its champion, else its latest.

        A version that failed its gate is nobody's latest.
        """
        return self.get(ref.name, self._number(ref))

    def latest(self, name: str) -> AdapterVersion | None:
        """The newest version of a name that did not fail its gate."""
        fit = [each for each in self.versions.get(name, {}).values() if each.is_fit]
        return fit[-1] if fit else None

    def list(self) -> list[AdapterVersion]:
        """Every version, by name and number."""
        return [version for each in self.versions.values() for version in each.values()]

    def aliases(self, name: str) -> dict[str, int]:
        """Stored aliases of a name."""
        return dict(self.stored_aliases.get(name, {}))

    def _number(self, ref: AdapterRef) -> int:
        if ref.version is not None:
            return ref.version
        versions, aliases = self.versions.get(ref.name, {}), self.stored_aliases.get(ref.name, {})
        if not versions:
            raise NotFound(f"there is no adapter {ref.name!r}; {self._known(ref.name)}")
        alias = ref.alias or CHAMPION
        if alias in aliases:
            return aliases[alias]
        if ref.alias in (None, LATEST):
            if (latest := self.latest(ref.name)) is not None:
                return latest.version
            raise NotFound(
                f"every version of {ref.name} failed its gate, so {ref} means none of them; "
                f"ask for one by its number: {self._known(ref.name)}"
            )
        listed = ", ".join(f"{ref.name}@{each}" for each in sorted([*aliases, LATEST]))
        raise NotFound(f"there is no alias {ref.name}@{alias}; known: {listed}")

    def _known(self, name: str) -> str:
        """A remedy: the versions of this name, else the names that exist."""
        if versions := self.versions.get(name):
            return f"{name} has " + ", ".join(f"@{version}" for version in versions)
        names = sorted(self.versions)
        if not names:
            return "no adapter is registered yet"
        return "registered: " + ", ".join(names[:MAX_SHOWN]) + ", …" * (len(names) > MAX_SHOWN)
