"""Adapter versions on disk and their records: publish, find, alias, remove, verify.

A version is a folder plus one row. The row decides: a folder counts only once its row is committed
(artifacts.version_folder settles what a crash left between the two). Numbers come from a stored
counter and are never given twice. Knows nothing of what the weights mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import ForeignKeyConstraint, Integer, String, Text, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from artifacts.database import Database, Table
from artifacts.errors import Conflict, NotFound
from artifacts.home import Home
from artifacts.manifest import AdapterManifest, ManifestDraft
from artifacts.names import CHAMPION, LATEST, AdapterRef, check_alias, check_name
from artifacts.safe_write import publish_folder
from artifacts.version_folder import VersionFolders

Paths = list[Path]  # inside Registry, ``list`` is its method


class AdapterRow(Table):
    """One name and the number its next version gets."""

    __tablename__ = "adapters"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    next_version: Mapped[int] = mapped_column(Integer, default=1)


class VersionRow(Table):
    __tablename__ = "adapter_versions"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    version: Mapped[int] = mapped_column(Integer, primary_key=True)
    content_hash: Mapped[str] = mapped_column(String(64), index=True)
    manifest: Mapped[str] = mapped_column(Text)  # the JSON of AdapterManifest
    __table_args__ = (ForeignKeyConstraint(["name"], ["adapters.name"]),)


class AliasRow(Table):
    __tablename__ = "adapter_aliases"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    alias: Mapped[str] = mapped_column(String(64), primary_key=True)
    version: Mapped[int] = mapped_column(Integer)
    __table_args__ = (
        ForeignKeyConstraint(
            ["name", "version"], ["adapter_versions.name", "adapter_versions.version"]
        ),
    )


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


class Registry:
    """All versions under one home. Safe from many threads and processes at once."""

    def __init__(self, home: Home, database: Database) -> None:
        self.home = home
        self.database = database
        self._folders = VersionFolders(home)
        database.create_tables()

    # --- writing ---

    def publish(self, name: str, folder: Path, manifest: ManifestDraft) -> AdapterVersion:
        """Move the finished PEFT folder in as the next version of ``name``.

        The folder is gone afterwards. The first version becomes ``champion``, later ones change
        no alias. On any failure nothing is registered. Raises InvalidName, InvalidInput.
        """
        check_name(name)
        staged = self._folders.stage(folder)
        with self.database.session() as session:
            row = session.get(AdapterRow, name) or AdapterRow(name=name, next_version=1)
            session.add(row)
            self._sweep(session, row)
            record = AdapterManifest(
                **manifest.model_dump(),
                name=name,
                version=row.next_version,
                created_at=datetime.now(UTC).isoformat(timespec="seconds"),
                files=staged.hashes,
            )
            record = staged.write_record(record)
            final = self._folders.path(name, record.version)
            publish_folder(staged.path, final)
            _insert(session, row, record)
        self._folders.confirm(final)
        staged.discard_source()
        return AdapterVersion(name, record.version, final, record.content_hash, record)

    def set_alias(self, name: str, alias: str, version: int) -> int | None:
        """Point ``name@alias`` at a version; returns the version it pointed at before."""
        check_alias(alias)
        with self.database.session() as session:
            self._version_row(session, check_name(name), version)
            row = session.get(AliasRow, (name, alias))
            if row is None:
                session.add(AliasRow(name=name, alias=alias, version=version))
                return None
            before, row.version = row.version, version
            return before

    def delete_alias(self, name: str, alias: str) -> None:
        """Forget ``name@alias``; NotFound if it does not exist."""
        with self.database.session() as session:
            row = session.get(AliasRow, (check_name(name), check_alias(alias)))
            if row is None:
                raise self._no_alias(session, name, alias)
            session.delete(row)

    def remove(self, name: str, version: int, *, force: bool = False) -> None:
        """Delete a version for good; its number stays used.

        Conflict if an alias points at it, unless ``force``, which deletes those aliases too.
        """
        path = self._folders.path(check_name(name), version)
        with self.database.session() as session:
            row = self._version_row(session, name, version)
            pointing = session.scalars(select(AliasRow).filter_by(name=name, version=version)).all()
            if pointing and not force:
                listed = ", ".join(sorted(f"{name}@{alias.alias}" for alias in pointing))
                raise Conflict(
                    f"{name}@{version} is what {listed} points at; move the alias first, or "
                    "remove with force to delete both"
                )
            for alias in pointing:
                session.delete(alias)
            session.flush()
            session.delete(row)
            self._folders.doubt(path)  # from the commit on, it is rubbish
        self._folders.discard(path)

    def recover(self) -> Paths:
        """Clear what crashes left behind; returns the folders removed. Call at start-up."""
        with self.database.session() as session:
            rows = {row.name: row for row in session.scalars(select(AdapterRow))}
            removed = [path for row in rows.values() for path in self._sweep(session, row)]
            for name in self._folders.names() - rows.keys():
                removed += self._folders.discard_doubtful(name, set())
        return removed + self._folders.discard_scratch()

    # --- reading ---

    def get(self, name: str, version: int) -> AdapterVersion:
        """NotFound names what exists."""
        with self.database.reading() as session:
            return self._load(self._version_row(session, check_name(name), version))

    def resolve(self, ref: AdapterRef) -> AdapterVersion:
        """What a reference means now; a bare name means its champion, else its latest."""
        with self.database.reading() as session:
            return self._load(self._version_row(session, ref.name, self._number(session, ref)))

    def list(self) -> list[AdapterVersion]:
        """Every version, by name and number."""
        order = (VersionRow.name, VersionRow.version)
        with self.database.reading() as session:
            return [self._load(row) for row in session.scalars(select(VersionRow).order_by(*order))]

    def aliases(self, name: str) -> dict[str, int]:
        """Stored aliases of a name; ``latest`` is computed and not among them."""
        with self.database.reading() as session:
            rows = session.scalars(select(AliasRow).filter_by(name=name).order_by(AliasRow.alias))
            return {row.alias: row.version for row in rows}

    def verify(self, name: str, version: int) -> None:
        """Hash the version's files again; Corrupt names the first that differs from the record."""
        self._folders.verify(self.get(name, version).manifest)

    # --- below ---

    def _sweep(self, session: Session, row: AdapterRow) -> Paths:
        """Remove crash leftovers of one name and move its counter past every number on disk."""
        row.next_version = max(row.next_version, 1 + self._folders.highest(row.name))
        return self._folders.discard_doubtful(row.name, set(_versions(session, row.name)))

    def _load(self, row: VersionRow) -> AdapterVersion:
        manifest = AdapterManifest.model_validate_json(row.manifest)
        path = self._folders.path(row.name, row.version)
        return AdapterVersion(row.name, row.version, path, row.content_hash, manifest)

    def _version_row(self, session: Session, name: str, version: int) -> VersionRow:
        row = session.get(VersionRow, (name, version))
        if row is None:
            raise NotFound(f"there is no adapter {name}@{version}; {_known(session, name)}")
        return row

    def _number(self, session: Session, ref: AdapterRef) -> int:
        if ref.version is not None:
            return ref.version
        alias = ref.alias or CHAMPION
        row = session.get(AliasRow, (ref.name, alias)) if alias != LATEST else None
        if row is not None:
            return row.version
        if ref.alias not in (None, LATEST):
            raise self._no_alias(session, ref.name, alias)
        versions = _versions(session, ref.name)
        if not versions:
            raise NotFound(f"there is no adapter {ref.name!r}; {_known(session, ref.name)}")
        return versions[-1]

    def _no_alias(self, session: Session, name: str, alias: str) -> NotFound:
        if not _versions(session, name):
            return NotFound(f"there is no adapter {name!r}; {_known(session, name)}")
        known = session.scalars(select(AliasRow.alias).filter_by(name=name)).all()
        listed = ", ".join(f"{name}@{each}" for each in sorted([*known, LATEST]))
        return NotFound(f"there is no alias {name}@{alias}; known: {listed}")


def _insert(session: Session, row: AdapterRow, record: AdapterManifest) -> None:
    is_first = not _versions(session, record.name)
    row.next_version = record.version + 1
    session.add(
        VersionRow(
            name=record.name,
            version=record.version,
            content_hash=record.content_hash,
            manifest=record.model_dump_json(),
        )
    )
    session.flush()
    if is_first:
        session.merge(AliasRow(name=record.name, alias=CHAMPION, version=record.version))


def _versions(session: Session, name: str) -> list[int]:
    order = VersionRow.version
    return list(session.scalars(select(order).filter_by(name=name).order_by(order)))


def _known(session: Session, name: str) -> str:
    """A remedy: the versions of this name, else the names that exist."""
    if versions := _versions(session, name):
        return f"{name} has " + ", ".join(f"@{version}" for version in versions)
    names = session.scalars(select(VersionRow.name).distinct().order_by(VersionRow.name)).all()
    if not names:
        return "no adapter is registered yet"
    return "registered: " + ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
